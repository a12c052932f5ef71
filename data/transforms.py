"""Image transforms: PIL image to uint8 [3, H, W]; normalisation happens on the device, in one place."""

import math

import torch
from torchvision.transforms import InterpolationMode, v2

# CLIP's channel statistics (Radford et al. 2021), used by every work this project compares with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

AUGMENTATIONS = ("published", "strong")

_ANGLE = 15.0  # degrees of a rotation
_SHIFT = 5  # pixels, of an image of any size
_SHEAR = math.degrees(math.atan(0.15))
_AROUND = {"interpolation": InterpolationMode.BILINEAR, "fill": [128, 128, 128]}


def _affine(image, translate=(0, 0), shear=(0.0, 0.0)):
    """Sheared along its upper and left edge, as OpenCV's matrices do it."""
    options = _AROUND | {"angle": 0.0, "scale": 1.0, "center": [0.0, 0.0]}
    return v2.functional.affine(image, translate=list(translate), shear=list(shear), **options)


# name -> operation(image, sign), at level 5 of 10 of the reference.
_OPERATIONS = {
    "Identity": lambda image, sign: image,
    "AutoContrast": lambda image, sign: v2.functional.autocontrast(image),
    "Equalize": lambda image, sign: v2.functional.equalize(image),
    "Brightness": lambda image, sign: image,  # the factor is 5 / 10 x 1.8 + .1 = 1: no change
    "Sharpness": lambda image, sign: image,  # likewise
    "ShearX": lambda image, sign: _affine(image, shear=(sign * _SHEAR, 0.0)),
    "ShearY": lambda image, sign: _affine(image, shear=(0.0, sign * _SHEAR)),
    "TranslateX": lambda image, sign: _affine(image, translate=(sign * _SHIFT, 0)),
    "TranslateY": lambda image, sign: _affine(image, translate=(0, sign * _SHIFT)),
    "Rotate": lambda image, sign: v2.functional.rotate(image, sign * _ANGLE, **_AROUND),
}


class PublishedAugment(torch.nn.Module):
    """Two operations of ten, drawn with replacement, each done with probability one half: the augmentation of
    the published experts, milder than RandAugment, whose operations are always done.
    """

    def forward(self, image):
        drawn = torch.randint(len(_OPERATIONS), (2,)).tolist()
        for number, (done, positive) in zip(drawn, torch.rand(2, 2).lt(0.5).tolist()):
            if done:
                image = list(_OPERATIONS.values())[number](image, 1 if positive else -1)
        return image


class StrongAugment(v2.RandAugment):
    """RandAugment at magnitude 5 of 10, without the colour operations that would make a caption untrue
    (solarize, posterize, colour).
    """

    _AUGMENTATION_SPACE = {name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in _OPERATIONS}

    def __init__(self):
        super().__init__(num_ops=2, magnitude=5, num_magnitude_bins=11)  # bins 0..10


def train_transform(image_size, augmentation="published"):
    """Random resized crop, flip, and one of the AUGMENTATIONS."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            {"published": PublishedAugment, "strong": StrongAugment}[augmentation](),
            v2.PILToTensor(),
        ]
    )


def test_transform(image_size):
    """Bicubic resize to a square, no crop."""
    return v2.Compose(
        [v2.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC), v2.PILToTensor()]
    )


def _statistics(images, mean, std):
    shape = (-1, 1, 1)
    return (
        torch.tensor(value, device=images.device, dtype=images.dtype).view(shape) for value in (mean, std)
    )


def normalise(images, mean=CLIP_MEAN, std=CLIP_STD):
    """uint8 [..., 3, H, W] to the float32 images that the encoders take."""
    images = images.float().div_(255)
    mean, std = _statistics(images, mean, std)
    return images.sub_(mean).div_(std)


def denormalise(images, mean=CLIP_MEAN, std=CLIP_STD):
    """Float images of the encoders to pixels in [0, 1], clamped."""
    mean, std = _statistics(images, mean, std)
    return (images * std + mean).clamp(0, 1)

"""Image transforms: PIL image to uint8 [3, H, W]; normalisation happens on the device, in one place."""

import torch
from torchvision.transforms import InterpolationMode, v2

# CLIP's channel statistics (Radford et al. 2021), used by every work this project compares with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)


class _PairRandAugment(v2.RandAugment):
    """RandAugment without the colour operations that would make a caption untrue (solarize, posterize,
    colour).
    """

    _AUGMENTATION_SPACE = {name: v2.RandAugment._AUGMENTATION_SPACE[name] for name in _OPERATIONS}


def train_transform(image_size):
    """Random resized crop, flip, and two RandAugment operations at magnitude 5 of 10."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            _PairRandAugment(num_ops=2, magnitude=5, num_magnitude_bins=11),  # bins 0..10
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

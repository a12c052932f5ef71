"""Image encoders through timm: pooled features, never class logits."""

from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import timm
import torch
from timm.layers import FrozenBatchNormAct2d, freeze_batch_norm_2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.tensors import load_tensors
from networks.toy_tower import ensure_toy_tower

TOY_TOWER = "toy_nfnet"  # pretrained here, on scenes, where it is first asked for
# Short names -> (timm name, checkpoint file looked for before the hub, options of timm.create_model).
_ALIASES = {
    "nfnet": ("nfnet_l0", "nfnet_l0_ra2-45c6688d.pth", {}),
    "nf_regnet": ("nf_regnet_b1", "nf_regnet_b1.pth", {}),
    "resnet18_gn": (
        "resnet18",
        "resnet18_gn.pth",
        {"norm_layer": "groupnorm"},
    ),  # nowhere pretrained: a file or random weights
    "vit": ("vit_tiny_patch16_224", "vit_tiny_patch16_224.pth", {}),
    "convnext": ("convnext_tiny", "convnext_tiny.pth", {}),
    TOY_TOWER: ("test_nfnet", f"{TOY_TOWER}.pth", {}),
}


def build_image_encoder(name, pretrained, checkpoint_dir):
    """A timm model without its classifier: images [B, 3, H, W] to features [B, num_features].

    Pretrained weights come from a file in `checkpoint_dir` (an alias's own name, or `<timm name>.pth`) if it
    is there, from timm's hub otherwise. Without them the weights are random but always the same, as
    pretrained ones are: every expert and every student starts from one image tower, in both cases. Raises
    UserError for an unknown name and for weights that cannot be had.
    """
    timm_name, file_name, options = _ALIASES.get(name, (name, f"{name}.pth", {}))
    if not timm.is_model(timm_name):
        raise UserError(
            f"--image_encoder {name!r} is neither {', '.join(_ALIASES)} nor the name of a timm model."
        )
    checkpoint = Path(checkpoint_dir) / file_name
    if pretrained and name == TOY_TOWER:
        ensure_toy_tower(checkpoint, timm_name)
    from_hub = pretrained and not checkpoint.exists()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the GPUs' generators too
            model = _create(timm_name, pretrained=from_hub, **options)
    except (OSError, RuntimeError) as error:
        if not from_hub:
            raise
        raise UserError(
            f"No pretrained weights for {name!r}: {checkpoint} does not exist and timm's hub gave none "
            f"({first_line(error)}); download them, or pass --image_pretrained false."
        ) from error
    if pretrained and not from_hub:
        _load_checkpoint(model, checkpoint)
    return model


def _create(timm_name, **options):
    """A timm model without classifier, for images of any size where it can be (transformers resample their
    position embedding).
    """
    try:
        return timm.create_model(timm_name, num_classes=0, dynamic_img_size=True, **options)
    except TypeError:  # the model has no such option, and no need of it
        return timm.create_model(timm_name, num_classes=0, **options)


def freeze_batch_norm(encoder):
    """The encoder with its BatchNorms as fixed affine maps, in training too: their statistics, scales and
    shifts are constants, and the other weights train.
    """
    return freeze_batch_norm_2d(encoder)


@torch.no_grad()
def fold_batch_norm(encoder):
    """A copy of a frozen encoder, in eval mode, with the BatchNorms that follow a convolution folded into it.

    It is the same function in fewer passes over memory. Which norm follows which convolution is read off the
    order of modules and then checked on an image of noise: an encoder that is not the same stays as it is.
    """
    encoder = encoder.eval()
    folded = deepcopy(encoder)
    pairs = [
        (parent, first, name, norm)
        for parent in folded.modules()
        for (_, first), (name, norm) in pairwise(parent.named_children())
        if isinstance(first, nn.Conv2d)
        and isinstance(norm, nn.BatchNorm2d)
        and first.out_channels == norm.num_features
    ]
    for parent, convolution, name, norm in pairs:
        statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        fused = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
        convolution.weight, convolution.bias = (nn.Parameter(value.detach(), False) for value in fused)
        rest = (getattr(norm, "drop", None), getattr(norm, "act", None))  # of timm's BatchNormAct2d
        setattr(parent, name, nn.Sequential(*(part for part in rest if part is not None)))
    if not pairs:
        return encoder
    size = getattr(encoder, "pretrained_cfg", {}).get("input_size") or (3, 224, 224)
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(pairs[0][1].weight)
    wanted, found = encoder(noise), folded(noise)
    return folded if torch.allclose(wanted, found, 1e-3, 1e-3 * wanted.abs().max()) else encoder


def keeps_statistics(module):
    """Whether a module, in training, changes statistics of what it has seen; one of `freeze_batch_norm` does
    not.
    """
    frozen = isinstance(module, (FrozenBatchNorm2d, FrozenBatchNormAct2d))
    return not frozen and getattr(module, "running_mean", None) is not None


def enable_checkpointing(model, name):
    """Have a timm model recompute its activations in the backward pass. UserError where timm has no code for
    it.
    """
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError):
        raise UserError(
            f"--grad_checkpointing: timm's {name} cannot recompute its activations; leave the flag off."
        ) from None


def _load_checkpoint(model, path):
    """Weights of the whole classifier into the model without its head; anything else that differs is an
    error.
    """
    weights = load_tensors(path, legacy=True)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head.fc"
    heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
    try:
        model.load_state_dict({n: value for n, value in weights.items() if not n.startswith(heads)})
    except (AttributeError, RuntimeError, TypeError) as error:  # other names, shapes or types
        what = f"{path} does not hold weights for {type(model).__name__}"
        raise UserError(f"{what}: {first_line(error)}") from error

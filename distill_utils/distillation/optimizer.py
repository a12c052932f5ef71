"""The outer optimiser: one SGD over images, texts, learned rates and similarity."""

from argparse import ArgumentTypeError

import torch

from distill_utils.runs.errors import UserError
from distill_utils.runs.flags import names

LEARNABLE = ("images", "texts", "similarity", "lrs")


def learnable(text):
    """Some of LEARNABLE, `A,B,...`, as a tuple."""
    parts = names(text)
    unknown = set(parts) - set(LEARNABLE)
    if unknown or not parts:
        raise ArgumentTypeError(f"expected some of {','.join(LEARNABLE)}, not {text!r}")
    return parts


def outer_optimizer(
    synthetic, *, lr_img, lr_txt, lr_lr, lr_sim, momentum_syn, momentum_lr, momentum_sim, learn=LEARNABLE
):
    """One SGD with a group each for the images, the texts, the two learned learning rates and the similarity,
    or those to `learn`.
    """
    groups = {
        "images": {"params": [synthetic.images], "lr": lr_img, "momentum": momentum_syn},
        "texts": {"params": [synthetic.texts], "lr": lr_txt, "momentum": momentum_syn},
        "lrs": {"params": [synthetic.lr_img, synthetic.lr_txt], "lr": lr_lr, "momentum": momentum_lr},
        "similarity": {
            "params": list(synthetic.similarity.parameters()),
            "lr": lr_sim,
            "momentum": momentum_sim,
        },
    }
    groups = [group for name, group in groups.items() if name in learn and group["params"]]
    if not groups:
        raise UserError(
            f"--learn {','.join(learn)} leaves nothing to learn: this set's similarity has no parameters."
        )
    return torch.optim.SGD(groups)

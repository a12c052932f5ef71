"""An epoch of training on pairs, which experts and students share."""

import torch

from distill_utils.runs.devices import autocast
from distill_utils.runs.errors import Diverged
from distill_utils.training.losses import pair_logits
from networks.weights import tower_parameters


def sgd(model, lr_img, lr_txt, **options):
    """SGD with one learning rate per tower."""
    towers = tower_parameters(model)
    groups = [
        {"params": [parameter for _, parameter in tower], "lr": lr}
        for tower, lr in zip(towers, (lr_img, lr_txt))
    ]
    return torch.optim.SGD(groups, **options)


def train_epoch(model, batches, optimizer, loss_fn, temperature, precision="fp32", observe=None):
    """One pass over batches of (images, texts, similarity, ...); the mean loss, Diverged if it is not finite.

    observe(logits [B, B] without a graph, ...) is told what else a batch has, such as the numbers of its
    pairs.
    """
    model.train()
    total, count = 0.0, 0
    for images, texts, similarity, *more in batches:
        with autocast(precision, images.device):
            features = model(images, texts)
        logits = pair_logits(*(side.to(similarity.dtype) for side in features), temperature)
        if observe:
            observe(logits.detach(), *more)
        loss = loss_fn(logits, similarity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + loss.detach(), count + 1
    mean = float(total) / count
    if not torch.isfinite(torch.tensor(mean)):
        rates = ", ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)
        raise Diverged(
            f"The training loss became {mean}: the learning rates ({rates}) are too high for this data and "
            "model."
        )
    return mean

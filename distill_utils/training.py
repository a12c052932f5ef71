"""Training a model on pairs: an epoch, which experts and students share, and a student's whole training."""

import torch

from distill_utils.errors import Diverged
from distill_utils.losses import pair_logits
from distill_utils.precision import autocast
from distill_utils.trajectory import tower_parameters


def sgd(model, lr_img, lr_txt, **options):
    """SGD with one learning rate per tower."""
    towers = tower_parameters(model)
    groups = [{"params": [parameter for _, parameter in tower], "lr": lr} for tower, lr in zip(towers, (lr_img, lr_txt))]
    return torch.optim.SGD(groups, **options)


def train_epoch(model, batches, optimizer, loss_fn, temperature, precision="fp32", observe=None):
    """One pass over batches of (images, texts, similarity, ...); the mean loss. Raises Diverged when it is not finite.

    observe(logits [B, B] without a graph, ...) is told what else a batch has, such as the numbers of its pairs.
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
        raise Diverged(f"The training loss became {mean}: the learning rates ({rates}) are too high for this data and model.")
    return mean


def train_student(model, synthetic, *, epochs, batch_size, loss_fn, temperature, lr_img, lr_txt, generator, precision="fp32"):
    """Train on a synthetic set as LoRS does (Algorithm 2): SGD with momentum .9, decay 5e-4, rates x .1 at half time.

    Yields (epoch, mean loss) after every epoch, counted from 1.
    """
    optimizer = sgd(model, lr_img, lr_txt, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2], gamma=0.1)
    loader = synthetic.loader(batch_size, generator=generator)
    for epoch in range(1, epochs + 1):
        loss = train_epoch(model, loader, optimizer, loss_fn, temperature, precision)
        schedule.step()
        yield epoch, loss

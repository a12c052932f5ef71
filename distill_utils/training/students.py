"""A student's whole training on a synthetic set."""

import torch

from distill_utils.training.epochs import sgd, train_epoch


def train_student(
    model,
    synthetic,
    *,
    epochs,
    batch_size,
    loss_fn,
    temperature,
    lr_img,
    lr_txt,
    generator,
    precision="fp32",
    images=None,
    fallen=False,
):
    """Train on a set as LoRS does (Algorithm 2): SGD, momentum .9, decay 5e-4, rates x .1 at half time.

    images: what a frozen encoder makes of the set's, [N, W], where the model has one. fallen: the rates are
    x .1 all the time. Yields (epoch, mean loss) after every epoch, counted from 1.
    """
    falls = [0 if fallen else epochs // 2]
    optimizer = sgd(model, lr_img, lr_txt, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    loader = synthetic.loader(batch_size, generator=generator, images=images)
    for epoch in range(1, epochs + 1):
        loss = train_epoch(model, loader, optimizer, loss_fn, temperature, precision)
        schedule.step()
        yield epoch, loss


def train_in_turn(model, phases, *, epochs, restart_rates=False, **how):
    """Train on several sets one after another, `epochs` on each (PTM-ST): (epoch, mean loss) counted on.

    phases: {"synthetic", "images", "lr_img", "lr_txt"} of each set. The rates fall at half time of the first
    and stay fallen, as published, or restart with every set. how: the rest of what `train_student` takes.
    """
    for number, phase in enumerate(phases):
        fallen = number > 0 and not restart_rates
        for epoch, loss in train_student(model, epochs=epochs, fallen=fallen, **phase, **how):
            yield number * epochs + epoch, loss

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
):
    """Train on a set as LoRS does (Algorithm 2): SGD, momentum .9, decay 5e-4, rates x .1 at half time.

    images: what a frozen encoder makes of the set's, [N, W], where the model has one. Yields (epoch, mean
    loss) after every epoch, counted from 1.
    """
    optimizer = sgd(model, lr_img, lr_txt, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [epochs // 2], gamma=0.1)
    loader = synthetic.loader(batch_size, generator=generator, images=images)
    for epoch in range(1, epochs + 1):
        loss = train_epoch(model, loader, optimizer, loss_fn, temperature, precision)
        schedule.step()
        yield epoch, loss

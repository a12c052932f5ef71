"""What objectives without an inner loop share: a batch of the set, and its gradient."""

import torch


def synthetic_batch(synthetic, size, generator):
    """Images, texts and the similarity block of `size` random pairs, of all where there are fewer, in the
    autograd graph of the set.
    """
    ids = torch.randperm(len(synthetic), generator=generator)[:size].to(synthetic.images.device)
    with torch.enable_grad():
        return synthetic.minibatch(ids)


def fill_gradients(synthetic, losses, world):
    """`.grad` of every parameter of the set, of the sum of `losses` {name: scalar}; zero where that does not
    depend on it. All processes get the first one's. Gives the values to log.
    """
    parameters = list(synthetic.parameters())
    with torch.enable_grad():
        losses = {"grand": sum(losses.values())} | losses
    found = torch.autograd.grad(losses["grand"], parameters, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(parameters, found):
        parameter.grad = gradient.contiguous()
        world.broadcast(parameter.grad, 0)
    return {f"Loss/{name}": value.item() for name, value in losses.items()}

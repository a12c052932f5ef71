"""What objectives without an inner loop share: a batch of the set, and its gradient."""

import torch


def synthetic_batch(synthetic, size, generator):
    """Images, texts and the similarity block of `size` random pairs, of all where there are fewer, in the
    autograd graph of the set.
    """
    ids = torch.randperm(len(synthetic), generator=generator)[:size].to(synthetic.images.device)
    with torch.enable_grad():
        return synthetic.minibatch(ids)


def fill_gradients(synthetic, loss, world):
    """`.grad` of every parameter of the set; zero where the loss does not depend on it. All processes get the
    first one's.
    """
    parameters = list(synthetic.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(parameters, found):
        parameter.grad = gradient.contiguous()
        world.broadcast(parameter.grad, 0)

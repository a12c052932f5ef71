"""The part of a student's image tower that nothing trains: synthetic images pass it once an outer step."""

import torch

from distill_utils.runs.devices import autocast
from distill_utils.runs.processes import ALONE


class FrozenTower:
    """h = f(x) of the images before the inner loop, and dL/dx from dL/dh after it.

    A frozen f is the same function in every inner step, so that dL/dx = (dh/dx)^T sum_t dL/dh_t: one forward
    and one backward pass an outer step, where the inner loop through f takes two of each every time that an
    image is drawn. Images go through it `chunk` at a time, which bounds the memory, and chunks are divided
    among the processes. encoder: None where all of the tower trains; images then stand for themselves.
    """

    def __init__(self, encoder, precision="fp32", world=ALONE):
        self.encoder, self.precision, self.world = encoder, precision, world

    def features(self, images, ids, chunk):
        """h [N, W], filled for the images `ids` alone, of images [N, 3, H, W]."""
        if self.encoder is None:
            return images
        width = self._encode(images[ids[:1]]).shape[1]
        found = images.new_zeros(len(images), width)
        for part, some in enumerate(ids.split(chunk)):
            made = images.new_empty(len(some), width)
            if self.world.owns(part):
                made = self._encode(images[some])
            self.world.broadcast(made, part)
            found[some] = made
        return found

    def pull_back(self, images, gradient, ids, chunk):
        """dL/dx [N, 3, H, W] from dL/dh, zero but for the images `ids`."""
        if self.encoder is None:
            return gradient
        found = torch.zeros_like(images)
        for part, some in enumerate(ids.split(chunk)):
            d_images = torch.empty_like(images[some])
            if self.world.owns(part):
                with torch.enable_grad():
                    pixels = images[some].requires_grad_()
                    (d_images,) = torch.autograd.grad(self._encode(pixels), pixels, gradient[some])
            self.world.broadcast(d_images, part)
            found[some] = d_images
        return found

    def _encode(self, images):
        with autocast(self.precision, images.device):
            return self.encoder(images).to(images.dtype)

"""The student of the inner loop: a model whose weights are two flat vectors, and the path they take."""

import os
import shutil
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.func import functional_call

from distill_utils.runs.devices import autocast
from distill_utils.runs.errors import UserError
from distill_utils.training.losses import pair_logits
from networks.weights import Weights, flatten, tower_parameters


class Blend(NamedTuple):
    """weight v + (1 - weight) v[permutation] in place of v [B, W], for images and texts alike; S stays."""

    weight: float
    permutation: torch.Tensor

    def __call__(self, values):
        return self.weight * values + (1 - self.weight) * values[self.permutation]


class Batch(NamedTuple):
    """z_t, and what belongs to it in both passes: the seed of its random numbers (dropout), and its Blend."""

    images: torch.Tensor
    texts: torch.Tensor
    similarity: torch.Tensor
    seed: int
    blend: Blend | None = None

    @property
    def z(self):
        return self[:3]


class Student:
    """A model whose trained parameters are views into `theta`, one flat vector per tower that keeps its place
    in memory.
    """

    def __init__(self, model, loss_fn, temperature, precision, compile):
        self.model, self.loss_fn, self.temperature, self.precision = model, loss_fn, temperature, precision
        towers = tower_parameters(model)
        self.names = [[name for name, _ in tower] for tower in towers]
        self._parameters = [[parameter for _, parameter in tower] for tower in towers]
        self._sizes = [[parameter.numel() for parameter in tower] for tower in self._parameters]
        self.theta = Weights(*(flatten(tower).detach() for tower in self._parameters))
        for tower, pieces in zip(self._parameters, self.views(self.theta)):
            for parameter, piece in zip(tower, pieces):
                parameter.data = piece
        self._sgd = torch.optim.SGD([{"params": tower} for tower in self._parameters], lr=0.0)
        if compile:
            if not self.theta.img.is_cuda and not any(
                map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))
            ):
                raise UserError("--compile needs a C++ compiler, and none is found (g++, clang++ or $CXX).")
            # Eager random numbers, so that what drops out is the same in the two graphs that finite
            # differences compile.
            model.image_encoder.compile(options={"fallback_random": True})

    def views(self, weights):
        """Per tower, a vector's pieces in the shapes of the parameters."""
        return [
            [piece.view_as(parameter) for piece, parameter in zip(vector.split(sizes), tower)]
            for vector, sizes, tower in zip(weights, self._sizes, self._parameters)
        ]

    def load(self, weights, direction=None, steps=None):
        """theta = weights, plus step * direction with a scalar tensor per tower."""
        for tower, (vector, new) in enumerate(zip(self.theta, weights)):
            if direction is None:
                vector.copy_(new)
            else:
                torch.addcmul(new, direction[tower], steps[tower], out=vector)

    def descend(self, gradients, eta):
        """An inner step: plain SGD with a learning rate per tower."""
        for parameters, tower, group, lr in zip(self._parameters, gradients, self._sgd.param_groups, eta):
            group["lr"] = lr
            for parameter, g in zip(parameters, tower):
                parameter.grad = g
        self._sgd.step()
        self._sgd.zero_grad()

    def features(self, batch, images, texts, parameters=None):
        """Both towers' features of what stands for the batch's images and texts, of `parameters` {name:
        tensor} where given, with dropout masks that depend on the batch's seed alone.
        """
        if batch.blend:
            images, texts = batch.blend(images), batch.blend(texts)
        with replayed(batch.seed, images.device), autocast(self.precision, images.device):
            return (
                self.model(images, texts)
                if parameters is None
                else functional_call(self.model, parameters, (images, texts))
            )

    def loss(self, features, similarity):
        return self.loss_fn(
            pair_logits(*(side.to(similarity.dtype) for side in features), self.temperature), similarity
        )

    def inputs(self, batch, with_theta, with_z):
        """The parameters per tower and the tensors of z, as leaves that ask for gradients, or for none and
        then save nothing for them.
        """
        for tower in self._parameters:
            for parameter in tower:
                parameter.requires_grad_(with_theta)
        return self._parameters, [value.detach().requires_grad_(with_z) for value in batch.z]

    def gradients(self, batch, *, with_theta, with_z):
        """At theta: (grad_theta l as Weights of one list per tower, grad_z l as a tuple); None for the one
        that is not asked for.
        """
        towers, z = self.inputs(batch, with_theta, with_z)
        wanted = [
            *(parameter for tower in towers for parameter in tower if with_theta),
            *(z if with_z else ()),
        ]
        with torch.enable_grad():
            loss = self.loss(self.features(batch, *z[:2]), z[2])
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        return (self.by_tower(found) if with_theta else None), (found[-3:] if with_z else None)

    def by_tower(self, gradients):
        """Weights of lists, from a sequence that begins with all parameters' gradients, image tower first."""
        images, texts = map(len, self._parameters)
        return Weights(gradients[:images], gradients[images : images + texts])


class WeightPath:
    """A `Weights` for every inner step, at rest on some device; its memory serves every outer step."""

    def __init__(self, device=None):
        self.device, self._towers = device, None

    def store(self, t, steps, pieces):
        """pieces: a list of tensors per tower, laid end to end."""
        like = pieces.img[0]
        if self._towers is None or len(self._towers.img) < steps:
            device = torch.device(self.device or like.device)
            options = {
                "dtype": like.dtype,
                "device": device,
                "pin_memory": device.type == "cpu" and like.is_cuda,
            }
            lengths = [sum(piece.numel() for piece in tower) for tower in pieces]
            # Not rows of one tensor: forward differentiation along one of them would give all of them a
            # tangent.
            self._towers = Weights(
                *([torch.empty(length, **options) for _ in range(steps)] for length in lengths)
            )
        for kept, tower in zip(self._towers, pieces):
            if kept[t].device == like.device:
                flatten(tower, out=kept[t])
            else:
                kept[t].copy_(flatten(tower), non_blocking=True)

    def read(self, t, device):
        return Weights(*(kept[t].to(device, non_blocking=True) for kept in self._towers))


@contextmanager
def replayed(seed, device):
    """Random numbers that depend on the seed alone, so that both passes see the same function; all others go
    on.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

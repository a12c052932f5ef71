"""Trajectory matching as an objective: what fills `.grad` of the synthetic set for one outer step."""

from typing import NamedTuple

import numpy as np
import torch

from distill_utils.matching.checks import gradient_agreement
from distill_utils.matching.student import Blend


class Outcome(NamedTuple):
    """What an objective says of one outer step: `values` {key of the log: number}, and `where` {name: number}
    it looked.
    """

    values: dict
    where: dict


class TrajectoryMatching:
    """Draws an expert, where to start, and the minibatches of T inner steps, and matches the student to the
    expert's target.

    Called with the synthetic set and the outer step's own generator; fills `.grad` of every parameter of the
    set. starts: the Starts of experts/starts.py. blend: a > 0 mixes the pairs of each inner step (RepBlend),
    see `draw_blend`. checker: an exact Matcher; every `check_every` calls how its gradient agrees with the
    one used is among the values.
    """

    def __init__(
        self,
        matcher,
        experts,
        *,
        syn_steps,
        mini_batch_size,
        expert_epochs,
        starts,
        minibatches="permutation",
        blend=0.0,
        checker=None,
        check_every=0,
    ):
        self.matcher, self.experts = matcher, experts
        self.syn_steps, self.mini_batch_size = syn_steps, mini_batch_size
        self.expert_epochs, self.starts = expert_epochs, starts
        self.minibatches, self.blend = minibatches, blend
        self.checker, self.check_every = checker, check_every
        self._pair, self._length = None, None

    def __call__(self, synthetic, step, draws):
        expert, epochs = self.starts.draw(len(self.experts), draws)
        start, target = self._pair = self.experts.pair(expert, epochs, self.expert_epochs, out=self._pair)
        device = synthetic.images.device
        sizes = len(synthetic), self.mini_batch_size, self.syn_steps
        minibatches = draw_minibatches(*sizes, draws, device, self.minibatches)
        seed = int(torch.randint(1 << 62, (), generator=draws))
        blends = [draw_blend(len(ids), self.blend, draws, device) for ids in minibatches if self.blend]
        inner_loop = synthetic, start, target, minibatches, seed, blends
        exact = None
        if self.check_every and step % self.check_every == 0:
            self.checker(*inner_loop)
            exact = {name: parameter.grad for name, parameter in synthetic.named_parameters()}
        self.matcher.length = self._length
        loss = self.matcher(*inner_loop)
        values = compare_gradients(synthetic, exact) if exact else {}
        losses = {
            f"Loss/{name}": float(value) for name, value in zip(("grand", "img_grand", "txt_grand"), loss)
        }
        where = {"expert": expert, "epoch": epochs.img}
        if not self.starts.together:
            where["text epoch"] = epochs.txt
        return Outcome(values | losses, where)

    def commit(self):
        """The outer step that the last call was for is done: what it taught belongs to the state. A call that
        a signal cuts off from its step leaves nothing behind.
        """
        self._length = self.matcher.length

    def state(self):
        """What the next step depends on besides the set: {name: tensor or None}."""
        return {"length": self._length}

    def fits(self, state):
        """Whether `load_state` can take this."""
        length = state.get("length")
        return length is None or isinstance(length, torch.Tensor) and length.dim() == 0

    def load_state(self, state):
        self._length = state.get("length")


def _permutation(n, size, steps, generator):
    chunks = []
    while len(chunks) < steps:
        chunks += torch.randperm(n, generator=generator).split(size)[: max(1, n // size)]
    return chunks[:steps]


def _independent(n, size, steps, generator):
    return [torch.randperm(n, generator=generator)[:size] for _ in range(steps)]


# permutation: consecutive chunks of one, another drawn when fewer than a whole chunk are left, as in the
# published code; what is left is not used. independent: a draw of its own for every inner step.
MINIBATCHES = {"permutation": _permutation, "independent": _independent}


def draw_minibatches(n, size, steps, generator, device, kind="permutation"):
    """The ids of each inner step's pairs, LongTensors [size], distinct in a step; kind: of MINIBATCHES."""
    return [ids.to(device) for ids in MINIBATCHES[kind](n, size, steps, generator)]


def draw_blend(size, a, generator, device):
    """How the pairs of an inner step are mixed: a weight of Beta(a, a) and a permutation (RepBlend)."""
    numbers = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
    return Blend(numbers.beta(a, a), torch.randperm(size, generator=generator).to(device))


def compare_gradients(synthetic, exact):
    """{"Gradient/cosine_<parameter>", "Gradient/error_<parameter>"}: how `.grad` agrees with the exact one;
    error relative to its norm.
    """
    values = {}
    for name, parameter in synthetic.named_parameters():
        agreement = gradient_agreement(parameter.grad, exact[name])
        values |= {f"Gradient/{what}_{name}": number for what, number in agreement.items()}
    return values

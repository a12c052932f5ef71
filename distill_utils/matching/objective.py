"""Trajectory matching as an objective: what fills `.grad` of the synthetic set for one outer step."""

from typing import NamedTuple

import torch

from distill_utils.matching.checks import gradient_agreement


class Outcome(NamedTuple):
    """What an objective says of one outer step: `values` {key of the log: number}, and `where` {name: number}
    it looked.
    """

    values: dict
    where: dict


class TrajectoryMatching:
    """Draws an expert, a start epoch and the minibatches of T inner steps, and matches the student to the
    expert's target.

    Called with the synthetic set and the outer step's own generator; fills `.grad` of every parameter of the
    set. checker: an exact Matcher; every `check_every` calls how its gradient agrees with the one used is
    among the values.
    """

    def __init__(
        self,
        matcher,
        experts,
        *,
        syn_steps,
        mini_batch_size,
        expert_epochs,
        max_start_epoch,
        minibatches="permutation",
        checker=None,
        check_every=0,
    ):
        self.matcher, self.experts = matcher, experts
        self.syn_steps, self.mini_batch_size = syn_steps, mini_batch_size
        self.expert_epochs, self.max_start_epoch = expert_epochs, max_start_epoch
        self.minibatches = minibatches
        self.checker, self.check_every = checker, check_every
        self._pair, self._length = None, None

    def __call__(self, synthetic, step, draws):
        expert, epoch = self.experts.draw(self.max_start_epoch, draws)
        start, target = self._pair = self.experts.pair(expert, epoch, self.expert_epochs, out=self._pair)
        device = synthetic.images.device
        sizes = len(synthetic), self.mini_batch_size, self.syn_steps
        minibatches = draw_minibatches(*sizes, draws, device, self.minibatches)
        inner_loop = synthetic, start, target, minibatches, int(torch.randint(1 << 62, (), generator=draws))
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
        return Outcome(values | losses, {"expert": expert, "epoch": epoch})

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


def compare_gradients(synthetic, exact):
    """{"Gradient/cosine_<parameter>", "Gradient/error_<parameter>"}: how `.grad` agrees with the exact one;
    error relative to its norm.
    """
    values = {}
    for name, parameter in synthetic.named_parameters():
        agreement = gradient_agreement(parameter.grad, exact[name])
        values |= {f"Gradient/{what}_{name}": number for what, number in agreement.items()}
    return values

"""Where an inner loop starts: the epochs of an expert's snapshots that a student may begin at."""

from typing import NamedTuple

import torch

from distill_utils.runs.errors import UserError
from networks.weights import Weights

STARTS = ("joint", "independent", "ranges")  # values of --start_epochs


class Starts(NamedTuple):
    """The start epochs of each tower, as `Weights` of two ranges; `together`: one epoch for both towers."""

    epochs: Weights
    together: bool

    def draw(self, experts, generator):
        """One of a number of `experts`, and a start epoch for each tower, a `Weights`."""
        expert = int(torch.randint(experts, (), generator=generator))
        image = self._one_of(self.epochs.img, generator)
        return expert, Weights(image, image if self.together else self._one_of(self.epochs.txt, generator))

    @staticmethod
    def _one_of(epochs, generator):
        return epochs[int(torch.randint(len(epochs), (), generator=generator))]

    def last(self):
        return max(epochs[-1] for epochs in self.epochs)


def open_starts(kind, experts, first, stop, expert_epochs):
    """The Starts of a value of STARTS: one epoch of first .. stop - 1 for both towers; or one for each
    (AMD's decoupling); or one for each, of ranges that the experts give.
    """
    if kind == "ranges":
        return Starts(ranges_of(experts, expert_epochs), together=False)
    if first >= stop:
        raise UserError(f"--min_start_epoch {first} must be below --max_start_epoch {stop}.")
    return Starts(Weights(range(first, stop), range(first, stop)), together=kind == "joint")


def ranges_of(experts, expert_epochs):
    """A range of start epochs per tower, read off how fast each tower still moves (AMD).

    r_t: the mean absolute change of the image tower's weights from snapshot t to t + expert_epochs over that
    of the text tower's, averaged over the experts. Texts start up to the last t at which r_t is at most its
    median, images up to the first above it. Our reading: ends belong to their range, and where no r_t is
    above the median both towers have all of it. Where straight lines stand for the experts' paths, it is how
    fast these move.
    """
    last = experts.epochs() - expert_epochs
    if last < 0:
        raise UserError(
            f"--start_epochs ranges finds no expert in {experts.folder} of {expert_epochs} epochs."
        )
    moved = torch.zeros(2, last + 1, dtype=torch.float64)
    for expert in range(len(experts)):
        for t in range(last + 1):
            start, target = experts.pair(expert, Weights(t, t), expert_epochs)
            moved[:, t] += torch.stack([(b - a).abs().mean() for a, b in zip(start, target)])
    ratio = moved[0] / moved[1]
    above = ratio > ratio.quantile(0.5)
    text = int((~above).nonzero().max())
    image = int(above.nonzero().min()) if above.any() else last
    return Weights(range(image + 1), range(text + 1))

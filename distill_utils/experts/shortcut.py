"""Straight lines in place of an expert's path (PTM-ST's shortcut trajectories)."""

import torch

from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.runs.errors import UserError


class ShortcutTrajectories(ExpertTrajectories):
    """The experts of a folder, each on the line from its first snapshot to that of epoch `end`:

        theta_t = (1 - b_t) theta_0 + b_t theta_end,    b_t = |path from 0 to t| / |path from 0 to end|

    with b_t per parameter tensor, its path the sum of the Euclidean lengths of its steps between snapshots.
    So the student is asked to go as far in each layer as the expert went by epoch t, but straight to where it
    will be. Past `end` there is nothing: UserError from `require_fits`.
    """

    def __init__(self, folder, end):
        super().__init__(folder)
        self.end = end
        self._way = {}  # (expert, tower) -> b [end + 1, parameter tensors]

    def epochs(self):
        return min(self.end, super().epochs())

    def require_fits(self, model, last_start_epoch, expert_epochs):
        if last_start_epoch + expert_epochs > self.end:
            raise UserError(
                f"--shortcut {self.end} ends before epoch {last_start_epoch + expert_epochs}, which "
                "--max_start_epoch and --expert_epochs ask for."
            )
        super().require_fits(model, self.end - 1, 1)

    def _snapshot(self, expert, tower, epoch):
        shots = self.snapshots(expert)[tower]
        if (expert, tower) not in self._way:
            self._way[expert, tower] = _way(shots[: self.end + 1])
        way = self._way[expert, tower][epoch]
        ends = zip(shots[0], shots[self.end])
        return [torch.lerp(begin.float(), end.float(), b) for (begin, end), b in zip(ends, way)]


def _way(shots):
    """How much of each tensor's path is behind it at every snapshot: [snapshots, tensors], from 0 to 1; 1
    from the first step on where a tensor does not move.
    """
    lengths = [
        torch.stack([(b.float() - a.float()).norm() for a, b in zip(*pair)]) for pair in zip(shots, shots[1:])
    ]
    path = torch.stack([torch.zeros_like(lengths[0]), *lengths]).double().cumsum(0)
    return (path / path[-1]).nan_to_num(1.0).float()

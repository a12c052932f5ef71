"""Which rows are kept: the highest scores, exactly as many as asked for; of equal ones the lowest uids."""

import math
from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """What is kept: scores above `score`, and those equal to it up to the uid `last` (sortable, in hex; None:
    all of them).
    """

    score: float = -math.inf
    last: str | None = None

    def keeps(self, scores, uids):
        """Which of scores [b] with sortable uids [b]."""
        ties = scores == self.score
        if self.last is not None and ties.any():
            ties[ties] = uids[ties] <= np.bytes_(bytes.fromhex(self.last))
        return (scores > self.score) | ties


class Counts(NamedTuple):
    """Distinct scores, ascending, and how often each occurs: few, where scores are quantised to float16."""

    values: np.ndarray
    numbers: np.ndarray

    def at_least(self, score):
        begin = np.searchsorted(self.values, score)
        return Counts(self.values[begin:], self.numbers[begin:])

    def highest(self, n):
        begin = len(self.values) - 1 - np.searchsorted(self.numbers[::-1].cumsum(), n)
        values, numbers = self.values[begin:], self.numbers[begin:].copy()
        numbers[0] -= numbers.sum() - n
        return Counts(values, numbers)

    def summary(self):
        kept = int(self.numbers.sum())
        mean = float(self.values.astype(np.float64) @ self.numbers) / kept
        return {"kept": kept, "threshold": float(self.values[0]), "mean": mean, "max": float(self.values[-1])}

    def cut(self, kept, stream):
        """The Cut to `kept`, the highest of these; stream() yields (scores, sortable uids) a block."""
        score, wanted = float(kept.values[0]), kept.numbers[0]
        if wanted == self.at_least(score).numbers[0]:
            return Cut(score)
        ties = np.concatenate([uids[scores == score] for scores, uids in stream()])
        return Cut(score, bytes(np.sort(ties)[wanted - 1]).ljust(16, b"\0").hex())


def count(blocks):
    """Counts of the scores in arrays, which are put together whenever as many have come as were there."""
    parts, waiting, limit = [Counts(np.empty(0, np.float32), np.empty(0, np.int64))], 0, 1 << 20
    for block in blocks:
        parts.append(np.unique(block, return_counts=True))
        waiting += len(parts[-1][0])
        if waiting > limit:
            parts, waiting = [_together(parts)], 0
            limit = max(limit, len(parts[0].values))
    return _together(parts)


def _together(parts):
    values, numbers = (np.concatenate(column) for column in zip(*parts))
    order = np.argsort(values, kind="stable")
    values, numbers = values[order], numbers[order]
    first = np.flatnonzero(np.diff(values, prepend=np.nan) != 0)
    return Counts(values[first], np.add.reduceat(numbers, first) if len(first) else numbers)

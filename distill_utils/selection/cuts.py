"""Which rows are kept: the highest scores, exactly as many as asked for; of equal ones the lowest uids."""

import math

import numpy as np


def count(blocks):
    """(distinct scores, ascending; how often each occurs) of arrays: few, where scores are quantised."""
    values, numbers = map(np.concatenate, zip(*(np.unique(block, return_counts=True) for block in blocks)))
    values, place = np.unique(values, return_inverse=True)
    return values, np.bincount(place, numbers, len(values)).astype(np.int64)


def cut(counts, stream, n=None, threshold=None):
    """The cut that keeps the n highest scores, those of at least `threshold`, or all: (score, uid in hex), up
    to which equal scores are kept; and what is kept in numbers. (None, None) if nothing is.

    counts: of the scores in stream(), which yields (scores [b], sortable uids [b]).
    """
    values, numbers = counts
    begin, spare = np.searchsorted(values, -math.inf if threshold is None else threshold), 0
    if n is not None:
        begin = len(values) - 1 - np.searchsorted(numbers[::-1].cumsum(), n)
        spare = numbers[begin:].sum() - n
    values, numbers = values[begin:], numbers[begin:].copy()
    if not len(values):
        return None, None
    numbers[0] -= spare
    score, last, kept = float(values[0]), "f" * 32, int(numbers.sum())
    if spare:
        ties = np.sort(np.concatenate([uids[scores == score] for scores, uids in stream()]))
        last = ties[numbers[0] - 1 : numbers[0]].tobytes().hex()
    mean = float(values.astype(np.float64) @ numbers) / kept
    return (score, last), {"kept": kept, "threshold": score, "mean": mean, "max": float(values[-1])}


def keeps(cut, scores, uids):
    """Which of scores [b] with sortable uids [b] a cut keeps."""
    score, last = cut
    return (scores > score) | (scores == score) & (uids <= np.bytes_(bytes.fromhex(last)))

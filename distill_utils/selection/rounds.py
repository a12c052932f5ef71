"""VAS-D: S is that of the pool itself, estimated anew while the pool shrinks over T rounds,

S' = (n S - R^T R) / (n - c),    R [c, D] the rows just removed.                                  (2)
"""

import math

import numpy as np

from distill_utils.runs.signals import Interrupted, undisturbed
from distill_utils.selection.score import TILE, SecondMoment, Tiles


class Stacked:
    """Arrays [n, D], one a file, as if they were one."""

    def __init__(self, arrays, width):
        self.arrays, self.starts = arrays, np.cumsum([0, *map(len, arrays)])
        self.shape = int(self.starts[-1]), width

    def __getitem__(self, rows):
        """[n, D] of ascending positions [n]."""
        files = np.searchsorted(self.starts, rows, "right") - 1
        return np.concatenate([self.arrays[n][rows[files == n] - self.starts[n]] for n in np.unique(files)])


class Rounds:
    """What is known between two rounds: the rows `alive`, the score of each and the round `then` it is of;
    how far scores can have moved, down and up, from the first round to each; S as `sums`.
    """

    def __init__(self, size):
        self.number, self.scored, self.sums = 0, 0, None
        self.alive, self.scores, self.then = (
            np.arange(size),
            np.zeros(size, np.float32),
            np.zeros(size, np.int32),
        )
        self.low, self.high = np.zeros(1), np.zeros(1)

    def to_score(self, count, slack):
        """Positions among the living of those that may be among the `count` worst."""
        if not self.number:
            return np.arange(len(self.alive))
        up, down = self.high[-1] - self.high[self.then], self.low[-1] - self.low[self.then]
        most = np.partition(self.scores + up + slack, count - 1)[count - 1]
        return np.flatnonzero(self.scores + down - slack <= most)  # `count` rows are at most that

    def end(self, again, fresh, gone, moved, sums):
        """New scores of the positions `again`, the positions `gone`, and how far S moved scores."""
        self.scores[again], self.then[again] = fresh, self.number
        for name in ("alive", "scores", "then"):
            setattr(self, name, np.delete(getattr(self, name), gone))
        self.low, self.high = (
            np.append(old, old[-1] + new) for old, new in zip((self.low, self.high), moved)
        )
        self.number, self.scored, self.sums = self.number + 1, self.scored + len(again), sums


def shrink(features, order, first, target, rounds, *, tiles=None, bound=True, told=None, keeper=None):
    """Which `target` rows of features [K, D] are left after `rounds` rounds, as sorted positions, and how
    many scores were computed.

    first: S of the first round, float64 [D, D], that of the whole pool. order: [K] distinct and sortable; of
    rows with equal scores those later in it go first. Each round removes the worst ceil((K - target) /
    rounds) by the S of those still there, (2).
    bound: a row is scored again only where it might be among the worst: along any unit f the score moved from
    S to S' by no less than the smallest and no more than the largest eigenvalue of S' - S. The result is the
    same without. told(round, scored, left) after each. keeper: loads and saves what is known.
    """
    tiles, (size, width), state = tiles or Tiles(), features.shape, Rounds(features.shape[0])
    moment, chunk, current = SecondMoment(width, size), math.ceil((size - target) / rounds), first
    if keeper and keeper.load(state):
        moment.sums, moment.rows = state.sums, len(state.alive)
        current = moment.value()
    else:
        for vectors in _units(features, state.alive, tiles):
            moment.add(tiles, vectors)
    current = current.astype(np.float32)
    try:
        while count := min(chunk, len(state.alive) - target):
            slack = width * np.finfo(np.float32).eps * np.linalg.norm(current)  # more than a score's rounding
            again = state.to_score(count, slack) if bound else np.arange(len(state.alive))
            rows = state.alive[again]
            fresh = np.concatenate([tiles.scores(part, current) for part in _units(features, rows, tiles)])
            gone = _worst(fresh, order[rows], count)
            rest = SecondMoment(width, size)
            rest.sums, rest.rows = moment.sums.copy(), moment.rows
            for vectors in _units(features, np.sort(rows[gone]), tiles):
                rest.add(tiles, vectors, -1)  # (2)
            following = rest.value().astype(np.float32)
            with undisturbed():
                state.end(again, fresh, again[gone], _moved(current, following, bound), rest.sums)
            moment, current = rest, following
            if told:
                told(state.number, len(again), len(state.alive))
            if keeper and keeper.due():
                keeper.save(state)
    except Interrupted:
        if keeper and state.number:
            keeper.save(state)
        raise
    return state.alive, state.scored


def _units(features, rows, tiles):
    """The unit vectors of rows, in tiles."""
    for begin in range(0, len(rows), TILE):
        yield tiles.units(features[rows[begin : begin + TILE]])[0]


def _moved(before, after, bound):
    """The least and the most that a unit vector's score can have moved."""
    return np.linalg.eigvalsh(after.astype(np.float64) - before)[[0, -1]] if bound else (0.0, 0.0)


def _worst(scores, order, count):
    """Positions of the `count` lowest scores; of equal ones those highest in `order`."""
    limit = np.partition(scores, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores < limit), np.flatnonzero(scores == limit)
    return np.concatenate([below, ties[np.argsort(order[ties], kind="stable")[::-1][: count - len(below)]]])

"""VAS-D: S is that of the pool itself, estimated anew while the pool shrinks over T rounds,

S' = (n S - R^T R) / (n - c),    R [c, D] the rows just removed.                                  (2)
"""

import math
from typing import NamedTuple

import numpy as np

from distill_utils.selection.score import CPU, TILE, SecondMoment


class Rounds(NamedTuple):
    """What is known after `number` rounds: scores computed so far, S as sums, the rows that are alive, and
    between what the score of each would come out.
    """

    number: np.int64
    scored: np.int64
    sums: np.ndarray
    alive: np.ndarray
    least: np.ndarray
    most: np.ndarray


def shrink(arrays, order, first, target, rounds, *, tiles=CPU, bound=True, state=None):
    """Yields the Rounds before the first round (or `state`, to go on from) and after each; those alive at the
    end are the `target` rows that are left of all in `arrays` [K, D].

    first: S of the first round, float64 [D, D], that of the whole pool. order: [K] distinct and sortable; of
    rows with equal scores those later in it go first. Each round removes the worst ceil((K - target) /
    rounds) by the S of those still there, (2). bound: a row is scored again only where it might be among the
    worst: along any unit f the score moved from S to S' by no less than the smallest and no more than the
    largest eigenvalue of S' - S. The result is the same without.
    """
    size, width = len(order), len(first)
    chunk = math.ceil((size - target) / rounds)
    if not state:
        moment = SecondMoment(width, size)
        for vectors in _units(arrays, np.arange(size), tiles):
            moment.add(tiles, vectors)
        unknown = np.full(size, np.inf)
        state = Rounds(np.int64(0), np.int64(0), moment.sums, np.arange(size), -unknown, unknown)
    yield state
    while count := min(chunk, len(state.alive) - target):
        moment = SecondMoment(width, size, state.sums.copy(), len(state.alive))
        current = (moment.value() if state.number else first).astype(np.float32)
        slack = 2 * width * np.finfo(np.float32).eps * np.linalg.norm(current)  # more than scores' rounding
        limit = np.partition(state.most, count - 1)[count - 1] + slack  # `count` rows are at most that
        again = np.flatnonzero(state.least <= limit)
        rows = state.alive[again]
        fresh = np.concatenate([tiles.scores(part, current) for part in _units(arrays, rows, tiles)])
        worst = _worst(fresh, order[rows], count)
        for vectors in _units(arrays, np.sort(rows[worst]), tiles):
            moment.add(tiles, vectors, -1)  # (2)
        change = moment.value().astype(np.float32).astype(np.float64) - current
        moved = np.linalg.eigvalsh(change)[[0, -1]] if bound else (-np.inf, np.inf)
        bounds = []
        for old, move in zip((state.least, state.most), moved):
            scores = old.copy()
            scores[again] = fresh
            scores += move
            bounds.append(np.delete(scores, again[worst]))
        alive = np.delete(state.alive, again[worst])
        state = Rounds(state.number + 1, state.scored + len(again), moment.sums, alive, *bounds)
        yield state


def _units(arrays, rows, tiles):
    """The unit vectors of rows, ascending, of arrays [n, D] as if they were one, in tiles."""
    starts = np.cumsum([0, *map(len, arrays)])
    for begin in range(0, len(rows), TILE):
        wanted = rows[begin : begin + TILE]
        of = np.searchsorted(starts, wanted, "right") - 1
        parts = [arrays[n][wanted[of == n] - starts[n]] for n in np.unique(of)]
        yield tiles.units(np.concatenate(parts))[0]


def _worst(scores, order, count):
    """Positions of the `count` lowest scores; of equal ones those highest in `order`."""
    limit = np.partition(scores, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores < limit), np.flatnonzero(scores == limit)
    return np.concatenate([below, ties[np.argsort(order[ties], kind="stable")[::-1][: count - len(below)]]])

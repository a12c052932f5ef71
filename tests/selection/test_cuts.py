"""Cuts against a sort, with ties."""

import numpy as np
import pytest
from pools import random_uids

from distill_utils.selection import cuts
from distill_utils.selection.subset import sortable


@pytest.mark.parametrize("kind", ["normal", "quantised", "equal", "signed zeros", "wide", "float32"])
def test_counts_are_those_of_a_sort(kind, monkeypatch):
    numbers = np.random.default_rng(0)
    values = {
        "normal": numbers.normal(size=1000),
        "quantised": numbers.normal(size=1000).astype(np.float16).astype(np.float64).round(1),
        "equal": np.full(50, 0.25),
        "signed zeros": np.array([0.0, -0.0, 1.0, -1.0, -0.0]),
        "wide": np.exp(numbers.normal(size=400) * 50) * numbers.choice([-1, 1], 400),
        "float32": numbers.normal(size=1000).astype(np.float32),
    }[kind]
    descending = np.sort(values)[::-1]
    counts = cuts.count(iter(np.array_split(values, 9)))
    assert counts[1].sum() == len(values) and np.array_equal(counts[0], np.unique(values))
    stream = lambda: iter([(values, sortable(random_uids(len(values))))])  # noqa: E731
    for n in {1, 2, len(values) // 2, len(values)}:
        _, summary = cuts.cut(counts, stream, n)
        assert summary["kept"] == n and summary["threshold"] == descending[n - 1]
        assert summary["max"] == descending[0]
        assert np.isclose(summary["mean"], descending[:n].mean(dtype=np.float64), rtol=1e-6)
        cut, above = cuts.cut(counts, stream, threshold=descending[n - 1])
        assert above["kept"] == (values >= descending[n - 1]).sum()
        assert np.array_equal(cuts.keeps(cut, *next(stream())), values >= descending[n - 1])
    assert cuts.cut(counts, stream, threshold=np.inf) == (None, None)


def test_many_blocks_are_put_together_on_the_way():
    numbers = np.random.default_rng(0)
    blocks = [numbers.random(300_000, np.float32) for _ in range(9)]
    counts = cuts.count(iter(blocks))
    values, found = np.unique(np.concatenate(blocks), return_counts=True)
    assert np.array_equal(counts[0], values) and np.array_equal(counts[1], found)
    assert counts[0].dtype == np.float32  # four bytes a row


def test_a_cut_keeps_exactly_n_and_of_equals_those_with_the_lowest_uid():
    numbers = np.random.default_rng(0)
    uids = sortable(random_uids(600))
    uids[:3] = sortable(np.array([(0, 0), (0, 1), (1, 0)], "u8,u8"))  # trailing zero bytes
    scores = numbers.choice([0.1, 0.2, 0.3], 600)
    blocks = list(zip(np.array_split(scores, 4), np.array_split(uids, 4)))
    counts = cuts.count(scores for scores, _ in blocks)
    for n in (1, 150, 200, 399, 600):
        kept = cuts.keeps(cuts.cut(counts, lambda: iter(blocks), n)[0], scores, uids)
        expected = sorted(range(600), key=lambda i: (-scores[i], uids[i]))[:n]
        assert sorted(np.flatnonzero(kept)) == sorted(expected)

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
    assert counts.numbers.sum() == len(values) and np.array_equal(counts.values, np.unique(values))
    for n in {1, 2, len(values) // 2, len(values)}:
        summary = counts.highest(n).summary()
        assert summary["kept"] == n and summary["threshold"] == descending[n - 1]
        assert summary["max"] == descending[0]
        assert np.isclose(summary["mean"], descending[:n].mean(dtype=np.float64), rtol=1e-6)
        above = counts.at_least(descending[n - 1]).numbers.sum()
        assert above == (values >= descending[n - 1]).sum()


def test_many_blocks_are_put_together_on_the_way():
    numbers = np.random.default_rng(0)
    blocks = [numbers.random(300_000, np.float32) for _ in range(9)]
    counts = cuts.count(iter(blocks))
    values, found = np.unique(np.concatenate(blocks), return_counts=True)
    assert np.array_equal(counts.values, values) and np.array_equal(counts.numbers, found)
    assert counts.values.dtype == np.float32  # four bytes a row


def test_a_cut_keeps_exactly_n_and_of_equals_those_with_the_lowest_uid():
    numbers = np.random.default_rng(0)
    uids = sortable(random_uids(600))
    uids[:3] = sortable(np.array([(0, 0), (0, 1), (1, 0)], "u8,u8"))  # trailing zero bytes
    scores = numbers.choice([0.1, 0.2, 0.3], 600)
    blocks = list(zip(np.array_split(scores, 4), np.array_split(uids, 4)))
    counts = cuts.count(scores for scores, _ in blocks)
    for n in (1, 150, 200, 399, 600):
        kept = counts.cut(counts.highest(n), lambda: iter(blocks)).keeps(scores, uids)
        expected = sorted(range(600), key=lambda i: (-scores[i], uids[i]))[:n]
        assert sorted(np.flatnonzero(kept)) == sorted(expected)

"""Which pairs an inner loop sees: chunks of a permutation, as in the published code, or independent draws."""

import pytest
import torch

from distill_utils.matching.objective import MINIBATCHES, draw_minibatches
from distill_utils.runs.seeds import generator


def drawn(n, size, steps, kind="permutation", step=1):
    return draw_minibatches(n, size, steps, generator(0, "step", step), "cpu", kind)


@pytest.mark.parametrize("n, size", [(99, 20), (100, 20), (7, 2), (7, 7), (7, 4), (1, 1), (199, 20)])
@pytest.mark.parametrize("steps", [1, 4, 8, 30])
def test_no_pair_returns_before_its_permutation_is_used_up(n, size, steps):
    minibatches = drawn(n, size, steps)
    assert [len(ids) for ids in minibatches] == [size] * steps
    whole = n // size  # what is left of a permutation after its whole chunks is not used
    for begin in range(0, steps, whole):
        seen = torch.cat(minibatches[begin : begin + whole])
        assert len(seen.unique()) == len(seen)
    assert whole >= -(-n // size) - 1
    counts = torch.cat(minibatches).bincount(minlength=n)
    assert counts.max() <= -(-steps // whole) and torch.cat(minibatches).max() < n


def test_every_pair_is_used_equally_often_where_the_chunks_fit():
    assert torch.cat(drawn(20, 5, 12)).bincount().tolist() == [3] * 20


def test_a_new_permutation_is_drawn_when_one_is_used_up():
    first, second = (torch.cat(drawn(20, 5, 8)[begin : begin + 4]) for begin in (0, 4))
    assert first.sort().values.equal(second.sort().values) and not first.equal(second)


def test_the_draw_depends_on_the_seed_and_the_outer_step_alone():
    assert all(map(torch.equal, drawn(99, 20, 8, step=3), drawn(99, 20, 8, step=3)))
    assert not torch.equal(drawn(99, 20, 8, step=3)[0], drawn(99, 20, 8, step=4)[0])


def test_how_many_pairs_an_outer_step_leaves_unseen():
    """The published sizes: 99 pairs, batch 20, T = 8."""
    unseen = {
        kind: sum(99 - len(torch.cat(drawn(99, 20, 8, kind, step)).unique()) for step in range(300))
        / 300
        / 99
        for kind in MINIBATCHES
    }
    assert unseen["permutation"] == pytest.approx((19 / 99) ** 2, abs=0.005)
    assert unseen["independent"] == pytest.approx((79 / 99) ** 8, abs=0.01)


def test_independent_draws_are_distinct_within_a_step():
    for ids in drawn(9, 6, 20, "independent"):
        assert len(ids.unique()) == 6

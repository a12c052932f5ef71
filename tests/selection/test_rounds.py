"""VAS-D against the slow one."""

import numpy as np
import pytest
from pools import shrink_slowly, unit
from test_score import moment_of

from distill_utils.selection.rounds import shrink
from distill_utils.selection.score import vas_scores


def shrunk(features, order, first, target, rounds, told=lambda *now: None, **how):
    """(the rows that are left, how many scores that took); told(round, scored, left) after each round."""
    before, *states = shrink([features], order, first, target, rounds, **how)
    for state in states:
        told(state.number, state.scored - before.scored, len(state.alive))
        before = state
    return before.alive, before.scored


@pytest.mark.parametrize("rounds", [1, 2, 7, 40])
@pytest.mark.parametrize("bound", [True, False])
def test_vas_d_is_the_slow_one(rounds, bound):
    features, told = unit(5000), []
    moment = moment_of(unit(9000, seed=2)).value()  # the pool before its CLIP cut: another set
    left, scored = shrunk(
        features, np.arange(5000), moment, 3000, rounds, bound=bound, told=lambda *now: told.append(now)
    )
    assert np.array_equal(left, shrink_slowly(features, moment, 3000, rounds))
    assert len(told) == rounds and told[-1][2] == 3000 and scored == sum(again for _, again, _ in told)
    if bound and rounds == 40:
        assert scored < 0.7 * sum(left for _, _, left in told)


def test_the_bound_is_one_where_the_moment_moves_much():
    features = np.concatenate([unit(300), np.tile(np.eye(16, dtype=np.float32)[3], (100, 1))])
    moment = moment_of(features).value()
    left, _ = shrunk(features, np.arange(400), moment, 40, 6)
    assert np.array_equal(left, shrunk(features, np.arange(400), moment, 40, 6, bound=False)[0])
    assert np.array_equal(left, shrink_slowly(features, moment, 40, 6))


def test_one_round_is_the_one_shot_and_more_rounds_than_rows_end_in_time():
    features = unit(300)
    moment = moment_of(features).value()
    once, _ = shrunk(features, np.arange(300), moment, 100, 1)
    scores = vas_scores(features.astype(np.float64), moment)
    assert set(once) == set(np.argsort(-scores)[:100])
    told = []
    left, _ = shrunk(features, np.arange(300), moment, 290, 1000, told=lambda *numbers: told.append(numbers))
    assert len(left) == 290 and len(told) == 10
    assert len(shrunk(features, np.arange(300), moment, 300, 5)[0]) == 300


def test_rows_that_are_equal_go_by_their_order():
    features = np.repeat(unit(1), 50, axis=0)
    order = np.random.default_rng(0).permutation(50)
    left, _ = shrunk(features, order, moment_of(features).value(), 20, 3)
    assert set(order[left]) == set(range(20))


def test_rows_of_several_arrays_are_those_of_one():
    rows, order = unit(50), np.arange(50)
    several = [rows[:20], rows[20:20], rows[20:21], rows[21:]]
    states = zip(*(shrink(arrays, order, np.eye(16), 20, 4) for arrays in ([rows], several)), strict=True)
    for one, other in states:
        assert all(map(np.array_equal, one, other))


def test_it_goes_on_from_any_round():
    features = unit(900)
    moment = moment_of(features).value()
    whole = list(shrink([features], np.arange(900), moment, 500, 9))
    for state in whole:
        *_, last = shrink([features], np.arange(900), moment, 500, 9, state=state)
        assert all(map(np.array_equal, last, whole[-1]))

"""RepBlend's mixing of pairs in the inner steps, against autograd through the blended unroll."""

import pytest
import torch
from test_frozen_tower import frozen_problem
from test_gradient import TAU, assert_same, gradients

from distill_utils.matching import oracles
from distill_utils.matching.gradient import Matcher
from distill_utils.matching.objective import draw_blend
from distill_utils.matching.student import Blend
from distill_utils.training.losses import LOSSES

CPU = torch.device("cpu")


def blends_for(minibatches, weights):
    numbers = torch.Generator().manual_seed(3)
    return [
        Blend(weight, torch.randperm(len(ids), generator=numbers))
        for ids, weight in zip(minibatches, weights)
    ]


@pytest.mark.parametrize("gradient", ["full", "truncated"])
@pytest.mark.parametrize("second_order, tolerance", [("forward", 1e-9), ("reverse", 1e-9), ("finite", 1e-5)])
def test_equals_the_blended_unroll(gradient, second_order, tolerance):
    problem = frozen_problem()
    model, synthetic, *rest = problem
    blends = blends_for(rest[-1], [0.3, 0.9, 0.5, 0.02])
    how = {"gradient": gradient, "temperature": TAU}
    loss = oracles.unroll(*problem, LOSSES["WBCE"], seed=5, blends=blends, **how)
    expected = gradients(synthetic)
    matcher = Matcher(model, LOSSES["WBCE"], second_order=second_order, **how)
    ours = matcher(synthetic, *rest, seed=5, blends=blends)
    assert [float(value) for value in ours] == pytest.approx([float(value) for value in loss], rel=1e-10)
    assert_same(synthetic, expected, tolerance)


def test_a_weight_of_one_is_no_blending():
    model, synthetic, *rest = frozen_problem()
    matcher = Matcher(model, LOSSES["WBCE"], second_order="forward", temperature=TAU)
    plain, found = matcher(synthetic, *rest, seed=5), gradients(synthetic)
    blended = matcher(synthetic, *rest, seed=5, blends=blends_for(rest[-1], [1.0] * 4))
    assert [float(value) for value in plain] == [float(value) for value in blended]
    assert_same(synthetic, found, 1e-12)


@pytest.mark.parametrize("a", [0.2, 1.0, 4.0])
def test_weights_are_of_a_beta_distribution_and_permutations_of_all(a):
    numbers = torch.Generator().manual_seed(0)
    drawn = [draw_blend(5, a, numbers, CPU) for _ in range(2000)]
    weights = torch.tensor([blend.weight for blend in drawn], dtype=torch.float64)
    assert abs(weights.mean() - 0.5) < 0.03
    assert weights.var().item() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.1)
    assert all(blend.permutation.sort().values.tolist() == list(range(5)) for blend in drawn)
    again = draw_blend(5, a, torch.Generator().manual_seed(0), CPU)
    assert again.weight == drawn[0].weight and torch.equal(again.permutation, drawn[0].permutation)

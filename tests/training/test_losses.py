"""The losses against plain loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from distill_utils.training.losses import LOSSES, identity_target, pair_logits


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(row):
    return [math.exp(x) / sum(map(math.exp, row)) for x in row]


def both_ways(cell, logits, target):
    """Sum over i of cell(logit row i, target row i), for rows and for columns, each over B."""
    n = len(logits)
    return (sum(map(cell, logits, target)) / n + sum(map(cell, zip(*logits), zip(*target))) / n) / 2


def cross_entropy(row, target):
    return -sum(t * math.log(p) for t, p in zip(target, softmax(row)))


def wbce(logits, target):
    cells = [
        (t, -t * math.log(sigmoid(z) + 1e-6) - (1 - t) * math.log(1 - sigmoid(z) + 1e-6))
        for row, goal in zip(logits, target)
        for z, t in zip(row, goal)
    ]
    sides = [[loss for t, loss in cells if (t > 0.5) == positive] for positive in (True, False)]
    return sum(sum(side) / len(side) if side else 0 for side in sides) / 2


def kl(row, target):
    goal = softmax([10 * t for t in target])
    return sum(t * (math.log(t) - math.log(p)) for t, p in zip(goal, softmax(row))) / len(row)


def mean_cells(cell):
    return lambda logits, target: (
        sum(cell(z, t) for row, goal in zip(logits, target) for z, t in zip(row, goal)) / len(logits) ** 2
    )


TWINS = {
    "InfoNCE": lambda z, s: both_ways(cross_entropy, z, s),
    "CWCL": lambda z, s: both_ways(lambda row, t: cross_entropy(row, t) / (sum(t) + 1e-6), z, s),
    "BCE": mean_cells(lambda z, t: -t * math.log(sigmoid(z)) - (1 - t) * math.log(1 - sigmoid(z))),
    "WBCE": wbce,
    "KL": lambda z, s: both_ways(kl, z, s),
    "MSE": mean_cells(lambda z, t: (sigmoid(z) - t) ** 2),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_values(name, n):
    torch.manual_seed(n)
    logits = 3 * torch.randn(n, n, dtype=torch.float64)
    similarity = torch.eye(n, dtype=torch.float64) + 0.4 * torch.rand(n, n, dtype=torch.float64)
    assert float(LOSSES[name](logits, similarity)) == pytest.approx(
        TWINS[name](logits.tolist(), similarity.tolist()), rel=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_by_differences_and_permutation_invariance(name):
    torch.manual_seed(0)
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    similarity = (torch.eye(4) * 0.8 + 0.1).double().requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], (logits, similarity))
    order = torch.tensor([2, 0, 3, 1])
    shuffled = LOSSES[name](logits[order][:, order], similarity[order][:, order])
    assert float(shuffled) == pytest.approx(float(LOSSES[name](logits, similarity)), rel=1e-12)


def test_info_nce_with_the_identity_is_clips_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(6, 6, dtype=torch.float64)
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert float(LOSSES["InfoNCE"](logits, identity_target(6, logits))) == pytest.approx(
        float(expected), rel=1e-12
    )


def test_wbce_balances_the_diagonal_against_the_rest():
    logits = torch.zeros(10, 10, dtype=torch.float64)
    assert float(LOSSES["WBCE"](logits, torch.eye(10).double())) == pytest.approx(
        -math.log(0.5 + 1e-6), rel=1e-12
    )
    logits.fill_diagonal_(50)  # ten right cells count as much as ninety wrong ones
    assert float(LOSSES["WBCE"](logits, torch.eye(10).double())) == pytest.approx(
        -math.log(0.5 + 1e-6) / 2, rel=1e-5
    )


def test_logits_are_cosines_over_the_temperature():
    features = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    assert torch.allclose(
        pair_logits(features, features, 0.07).diagonal(), torch.full((3,), 1 / 0.07, dtype=torch.float64)
    )

"""The similarity matrices: identity at start, blocks of the whole, parameter counts."""

import pytest
import torch

from distill_utils.runs.errors import UserError
from distill_utils.synthetic.similarity import LowRankSimilarity, build_similarity


@pytest.mark.parametrize("kind", ["lowrank", "full", "identity"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_identity_at_start(kind, n):
    assert torch.equal(build_similarity(kind, n, rank=1)(), torch.eye(n))


def test_low_rank_is_the_formula():
    similarity = LowRankSimilarity(5, rank=2, alpha=3.0).double()
    with torch.no_grad():
        for parameter in similarity.parameters():
            parameter.normal_()
    w, left, right = (parameter.detach() for parameter in similarity.parameters())
    expected = torch.empty(5, 5, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            expected[i, j] = (w[i] if i == j else 0) + 3.0 / 2 * sum(
                left[i, k] * right[j, k] for k in range(2)
            )
    assert torch.allclose(similarity(), expected, rtol=1e-13)


@pytest.mark.parametrize("kind", ["lowrank", "full", "identity"])
@pytest.mark.parametrize("ids", [[4], [3, 0, 2], [1, 1, 5], [0, 1, 2, 3, 4, 5]])
def test_a_block_is_cut_from_the_whole(kind, ids):
    similarity = build_similarity(kind, 6, rank=3, alpha=0.5)
    with torch.no_grad():
        for parameter in similarity.parameters():
            parameter.normal_()
    ids = torch.tensor(ids)
    assert torch.allclose(similarity(ids), similarity()[ids][:, ids], atol=1e-6)


@pytest.mark.parametrize("n, rank", [(99, 10), (199, 5), (499, 20)])
def test_storage_is_one_plus_two_ranks_a_pair(n, rank):
    assert sum(p.numel() for p in LowRankSimilarity(n, rank).parameters()) == n * (1 + 2 * rank)


def test_the_generator_decides():
    one, other = (LowRankSimilarity(4, 2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.left, other.left)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("lowrank", 3, 4), "--sim_rank 4"),
        (("lowrank", 3, 0), "--sim_rank 0"),
        (("diagonal", 3, 1), "'diagonal'"),
    ],
)
def test_bad_values_are_named(arguments, words):
    kind, n, rank = arguments
    with pytest.raises(UserError, match=words):
        build_similarity(kind, n, rank=rank)

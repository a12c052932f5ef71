"""The image-text similarity matrix S of a synthetic set: low-rank (LoRS, eq. 4), full, or the identity."""

import torch
from torch import nn

from distill_utils.runs.errors import UserError

SIM_TYPES = ("lowrank", "full", "identity", "expert")  # values of --sim_type; expert: a FixedSimilarity


class LowRankSimilarity(nn.Module):
    """S = diag(w) + alpha / r * L R^T; w = 1, L ~ N(0, 1), R = 0: I at start, 1 + 2 r numbers a pair.

    Parameters: `diagonal` [n], `left` [n, r], `right` [n, r].
    """

    kind = "lowrank"

    def __init__(self, n, rank=10, alpha=1.0, generator=None):
        super().__init__()
        if not 1 <= rank <= n:
            raise UserError(f"--sim_rank {rank} must be between 1 and the number of pairs, {n}.")
        self.rank, self.alpha = rank, alpha
        self.diagonal = nn.Parameter(torch.ones(n))
        self.left = nn.Parameter(torch.randn(n, rank, generator=generator))
        self.right = nn.Parameter(torch.zeros(n, rank))

    def forward(self, ids=None):
        """S [n, n], or its block ids x ids [B, B] (repeated ids are the same pair: they get the diagonal
        too).
        """
        diagonal, left, right = self.diagonal, self.left, self.right
        scale = self.alpha / self.rank
        if ids is None:
            return diagonal.diag() + scale * (left @ right.T)
        same = (ids[:, None] == ids[None, :]).to(diagonal.dtype)
        return same * diagonal[ids][:, None] + scale * (left[ids] @ right[ids].T)


class FullSimilarity(nn.Module):
    """Every cell of S [n, n] is a parameter; the identity at start unless `matrix` says otherwise."""

    kind = "full"

    def __init__(self, n, matrix=None):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(n) if matrix is None else matrix.clone())

    def forward(self, ids=None):
        return self.matrix if ids is None else self.matrix[ids][:, ids]


class FixedSimilarity(nn.Module):
    """A given S [n, n] in which nothing is learned, such as one that an expert computed."""

    kind = "fixed"

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix.clone())

    def forward(self, ids=None):
        return self.matrix if ids is None else self.matrix[ids][:, ids]


class IdentitySimilarity(nn.Module):
    """S = I, nothing learned: plain contrastive learning, and the similarity of a coreset."""

    kind = "identity"

    def __init__(self, n):
        super().__init__()
        self.register_buffer("matrix", torch.eye(n), persistent=False)

    def forward(self, ids=None):
        return self.matrix if ids is None else self.matrix[ids][:, ids]


def build_similarity(kind, n, *, rank=10, alpha=1.0, generator=None):
    """One of the three by the value of --sim_type."""
    if kind == "lowrank":
        return LowRankSimilarity(n, rank, alpha, generator)
    if kind == "full":
        return FullSimilarity(n)
    if kind == "identity":
        return IdentitySimilarity(n)
    raise UserError(f"A similarity of kind {kind!r} is unknown: expected lowrank, full or identity.")

"""Contrastive losses against a soft similarity target (LoRS, arXiv 2406.03793, section 3 and appendix).

Every loss maps logits Z [B, B] (row i: image i against all texts, already divided by the temperature) and a
target block S [B, B] to a scalar. With S = I, InfoNCE is CLIP's symmetric cross-entropy.
"""

import torch
import torch.nn.functional as F

_EPSILON = 1e-6


def pair_logits(image_features, text_features, temperature):
    """Z = F G^T / temperature, [B, B], from unit features [B, D]."""
    return image_features @ text_features.T / temperature


def _cross_entropies(logits, similarity):
    """Soft cross-entropy of each image over the texts [B], and of each text over the images [B]."""
    rows = -(similarity * logits.log_softmax(dim=1)).sum(dim=1)
    columns = -(similarity * logits.log_softmax(dim=0)).sum(dim=0)
    return rows, columns


def info_nce(logits, similarity):
    """Extended InfoNCE (the paper's eNCE)."""
    rows, columns = _cross_entropies(logits, similarity)
    return (rows.mean() + columns.mean()) / 2


def cwcl(logits, similarity):
    """Continuously weighted contrastive loss: every row (column) divided by its sum of S."""
    rows, columns = _cross_entropies(logits, similarity)
    rows = rows / (similarity.sum(dim=1) + _EPSILON)
    columns = columns / (similarity.sum(dim=0) + _EPSILON)
    return (rows.mean() + columns.mean()) / 2


def bce(logits, similarity):
    """Binary cross-entropy of every image-text cell."""
    return F.binary_cross_entropy_with_logits(logits, similarity)


def wbce(logits, similarity):
    """BCE with positive (S > .5) and negative cells averaged apart, then together; a side without cells
    counts as 0.
    """
    probability = logits.sigmoid()
    cells = (
        -similarity * (probability + _EPSILON).log() - (1 - similarity) * (1 - probability + _EPSILON).log()
    )
    positive = (similarity.detach() > 0.5).to(cells.dtype)
    negative = 1 - positive
    sides = [(cells * mask).sum() / mask.sum().clamp(min=1) for mask in (positive, negative)]
    return (sides[0] + sides[1]) / 2


def kl(logits, similarity, target_scale=10.0):
    """KL from softmax(10 S) to softmax(Z), averaged over all cells, in both directions of retrieval."""
    directions = []
    for dim in (0, 1):
        target = (target_scale * similarity).log_softmax(dim=dim)
        directions.append((target.exp() * (target - logits.log_softmax(dim=dim))).mean())
    return (directions[0] + directions[1]) / 2


def mse(logits, similarity):
    """Mean squared error of sigmoid(Z) against S."""
    return (logits.sigmoid() - similarity).square().mean()


LOSSES = {"InfoNCE": info_nce, "CWCL": cwcl, "BCE": bce, "WBCE": wbce, "KL": kl, "MSE": mse}


def identity_target(batch, like):
    """The target of plain contrastive learning: I, [batch, batch]."""
    return torch.eye(batch, dtype=like.dtype, device=like.device)

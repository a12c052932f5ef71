"""Image-text retrieval recall as one pure function of feature matrices."""

import torch

from distill_utils.errors import Diverged, UserError


def _require_finite(features, side):
    bad = int((~torch.isfinite(features)).sum())
    if bad:
        raise Diverged(f"{bad} of {features.numel()} {side} features are not finite: the model that made them has diverged.")


def _recall(ranks, ks, prefix):
    return {f"{prefix}_r{k}": 100.0 * (ranks < k).double().mean().item() for k in ks}


def _count_at_least(scores, of_column, of_row):
    """How many scores of each column are at least `of_column` [M], and of each row at least `of_row` [N].

    Blocks that fit the cache, counted by matrix products: an order of magnitude faster than comparing and summing the whole.
    float32 counts are exact up to 2^24 items.
    """
    n, m = scores.shape
    rows = max(1, (1 << 21 if scores.device.type == "cpu" else 1 << 27) // m)
    block = torch.empty(min(rows, n), m, device=scores.device)
    ones_rows, ones_columns = block.new_ones(len(block)), block.new_ones(m)
    columns, by_row = block.new_zeros(m), []
    for part, threshold in zip(scores.split(rows), of_row.split(rows)):
        hits = torch.ge(part, of_column, out=block[: len(part)])
        columns += ones_rows[: len(part)] @ hits
        hits = torch.ge(part, threshold[:, None], out=block[: len(part)])
        by_row.append(hits @ ones_columns)
    return columns.long(), torch.cat(by_row).long()


def retrieval_recall(image_features, text_features, txt2img, ks=(1, 5, 10)):
    """Recall at `ks` in percent, both ways, from image features [N, D], text features [M, D] and txt2img [M] (the image of each text).

    `img_r*`: text to image (IR@K of the papers); `txt_r*`: image to text (TR@K), a hit when any of the image's texts is among
    the first K; `r_mean`: the mean of all. A rank counts every wrong item that scores at least as high as the right one, so ties
    count against the model. Raises UserError for non-finite features, for indices out of range and for images without text.
    """
    _require_finite(image_features, "image")
    _require_finite(text_features, "text")
    n, m = len(image_features), len(text_features)
    txt2img = txt2img.to(image_features.device)
    if txt2img.shape != (m,) or not torch.equal(txt2img.unique(), torch.arange(n, device=txt2img.device)):
        raise UserError(f"txt2img must name, for each of {m} texts, one of {n} images, and every image at least once.")

    return recall_from_scores(image_features @ text_features.T, txt2img, ks)


def recall_from_scores(scores, txt2img, ks=(1, 5, 10)):
    """`retrieval_recall` of a score matrix [N, M] of images against texts."""
    n, m = scores.shape
    # Right scores come out of the same matrix, so that equal vectors tie exactly.
    right = scores[txt2img, torch.arange(m, device=scores.device)]  # [M]
    best = right.new_full((n,), -torch.inf).scatter_reduce(0, txt2img, right, "amax")  # [N], of each image's own texts
    images_at_least, texts_at_least = _count_at_least(scores, right, best)
    image_ranks = images_at_least - 1  # [M]; the right image itself does not count
    own_at_best = torch.bincount(txt2img[right >= best[txt2img]], minlength=n)
    text_ranks = texts_at_least - own_at_best  # [N]
    result = _recall(image_ranks, ks, "img") | _recall(text_ranks, ks, "txt")
    result["r_mean"] = sum(result.values()) / len(result)
    return result

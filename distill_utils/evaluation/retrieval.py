"""Image-text retrieval recall as one pure function of feature matrices."""

import torch

from distill_utils.runs.errors import Diverged, UserError


def _require_finite(features, side):
    bad = int((~torch.isfinite(features)).sum())
    if bad:
        count = f"{bad} of {features.numel()} {side} features"
        raise Diverged(f"{count} are not finite: the model that made them has diverged.")


def _recall(ranks, ks, prefix):
    return {f"{prefix}_r{k}": 100.0 * (ranks < k).double().mean().item() for k in ks}


def _count_at_least(scores, of_column, of_row):
    """How many scores of each column are at least `of_column` [M], and of each row at least `of_row` [N].

    Blocks that fit the cache, counted by matrix products: an order of magnitude faster than comparing and
    summing the whole. float32 counts are exact up to 2^24 items.
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
    """Recall at `ks` in percent, both ways, from features [N, D], [M, D] and txt2img [M], each text's image.

    `img_r*`: text to image (IR@K of the papers); `txt_r*`: image to text (TR@K), a hit when any of the
    image's texts is among the first K; `r_mean`: the mean of all. A rank counts every wrong item that scores
    at least as high as the right one, so ties count against the model. Raises UserError for non-finite
    features, for indices out of range and for images without text.
    """
    return recall_from_ranks(*retrieval_ranks(image_features, text_features, txt2img), ks)


def retrieval_ranks(image_features, text_features, txt2img):
    """The rank, from 0, of every text's image among the images [M], and of every image's best text among the
    others' texts [N].
    """
    _require_finite(image_features, "image")
    _require_finite(text_features, "text")
    n, m = len(image_features), len(text_features)
    txt2img = txt2img.to(image_features.device)
    if txt2img.shape != (m,) or not torch.equal(txt2img.unique(), torch.arange(n, device=txt2img.device)):
        raise UserError(
            f"txt2img must name, for each of {m} texts, one of {n} images, and every image at least once."
        )
    return ranks_from_scores(image_features @ text_features.T, txt2img)


def ranks_from_scores(scores, txt2img):
    """`retrieval_ranks` of a score matrix [N, M] of images against texts."""
    n, m = scores.shape
    # Right scores come out of the same matrix, so that equal vectors tie exactly.
    right = scores[txt2img, torch.arange(m, device=scores.device)]  # [M]
    best = right.new_full((n,), -torch.inf).scatter_reduce(
        0, txt2img, right, "amax"
    )  # [N], of each image's own texts
    images_at_least, texts_at_least = _count_at_least(scores, right, best)
    own_at_best = torch.bincount(txt2img[right >= best[txt2img]], minlength=n)
    return (
        images_at_least - 1,
        texts_at_least - own_at_best,
    )  # the right image itself does not count, nor do an image's own texts


def recall_from_ranks(image_ranks, text_ranks, ks=(1, 5, 10)):
    """`retrieval_recall` from the ranks of texts' images and of images' texts."""
    result = _recall(image_ranks, ks, "img") | _recall(text_ranks, ks, "txt")
    return result | {"r_mean": sum(result.values()) / len(result)}


def recall_from_scores(scores, txt2img, ks=(1, 5, 10)):
    """`retrieval_recall` of a score matrix [N, M] of images against texts."""
    return recall_from_ranks(*ranks_from_scores(scores, txt2img), ks)


def recall_by_group(captions, txt2img, image_ranks, text_ranks, ks=(1, 5, 10)):
    """{group: {"queries", recall at `ks`}}: texts by their length in words (four groups), images by their
    number of captions.
    """
    words = torch.tensor([len(caption.split()) for caption in captions])
    edges = sorted(
        set(torch.quantile(words.float(), torch.tensor([0.25, 0.5, 0.75, 1.0])).ceil().int().tolist())
    )
    groups, low = {}, int(words.min())
    for high in edges:
        chosen = (words >= low) & (words <= high)
        if chosen.any():
            groups[f"captions of {low} to {high} words"] = {"queries": int(chosen.sum())} | _recall(
                image_ranks.cpu()[chosen], ks, "img"
            )
            low = high + 1
    counts = torch.bincount(txt2img.cpu(), minlength=len(text_ranks))
    for count in counts.unique().tolist():
        chosen = counts == count
        groups[f"images with {count} captions"] = {"queries": int(chosen.sum())} | _recall(
            text_ranks.cpu()[chosen], ks, "txt"
        )
    return groups

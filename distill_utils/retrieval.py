"""Image-text retrieval recall as one pure function of feature matrices."""

import torch

from distill_utils.errors import UserError


def _require_finite(features, side):
    bad = int((~torch.isfinite(features)).sum())
    if bad:
        raise UserError(f"{bad} of {features.numel()} {side} features are not finite: the model that made them has diverged.")


def _recall(ranks, ks, prefix):
    return {f"{prefix}_r{k}": 100.0 * (ranks < k).double().mean().item() for k in ks}


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
    image_ranks = (scores >= right).sum(dim=0) - 1  # [M]; the right image itself does not count
    own_at_best = torch.bincount(txt2img[right >= best[txt2img]], minlength=n)
    text_ranks = (scores >= best[:, None]).sum(dim=1) - own_at_best  # [N]
    result = _recall(image_ranks, ks, "img") | _recall(text_ranks, ks, "txt")
    result["r_mean"] = sum(result.values()) / len(result)
    return result

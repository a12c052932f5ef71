"""The real captions nearest to learned text embeddings."""

import torch
import torch.nn.functional as F


@torch.no_grad()
def nearest_captions(texts, caption_embeddings, captions, k=3):
    """For every embedding of texts [N, T], the k nearest distinct captions by cosine among caption_embeddings
    [M, T].

    Returns N lists of {"caption", "cosine"}, nearest first; fewer than k where there are fewer distinct
    captions.
    """
    first = {}
    for position, caption in enumerate(captions):
        first.setdefault(caption, position)
    positions = list(first.values())
    texts, candidates = F.normalize(texts.cpu(), dim=1), F.normalize(caption_embeddings[positions], dim=1)
    nearest = []
    for chunk in texts.split(64):
        cosines, order = (chunk @ candidates.T).topk(min(k, len(positions)), dim=1)
        nearest += [
            [{"caption": captions[positions[o]], "cosine": round(c, 4)} for c, o in zip(*row)]
            for row in zip(cosines.tolist(), order.tolist())
        ]
    return nearest

"""Coresets: real pairs chosen greedily, by a ranking, or by clusters of their features."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from distill_utils.runs.errors import UserError
from distill_utils.selection.rounds import shrink
from distill_utils.selection.score import vas_scores


class _Free:
    """Which pairs may still be taken."""

    def __init__(self, image_index, unique_images):
        self.image_index, self.unique = image_index, unique_images
        self.mask = torch.ones(len(image_index), dtype=torch.bool, device=image_index.device)

    def best(self, scores):
        """Takes the free pair of the highest score, the first of equals."""
        pair = int(scores.masked_fill(~self.mask, -torch.inf).argmax())
        self.mask &= (
            self.image_index != self.image_index[pair]
            if self.unique
            else torch.arange(len(self.mask), device=self.mask.device) != pair
        )
        return pair


def herding(features, n, unique_images=True):
    """Each pair brings the mean of those chosen as near as any can to the mean of all (Welling 2009): a list
    of n.
    """
    mean, free = features.mean(), _Free(features.image_index, unique_images)
    chosen, total = [], torch.zeros_like(mean)
    for _ in range(n):
        wanted = (
            len(chosen) + 1
        ) * mean - total  # embeddings are of one length: the nearest has the largest product
        chosen.append(free.best(features.dot(wanted)))
        total += features.row(chosen[-1])
    return chosen


def k_center(features, n, unique_images=True):
    """Farthest first (Gonzalez 1985): the pair nearest to the mean, then always the one farthest from all
    those chosen.
    """
    free = _Free(features.image_index, unique_images)
    chosen = [free.best(features.dot(features.mean()))]
    nearest = torch.full(
        (len(features.texts),), -torch.inf, device=features.texts.device
    )  # product with the nearest chosen one
    while len(chosen) < n:
        nearest = torch.maximum(nearest, features.dot(features.row(chosen[-1])))
        chosen.append(free.best(-nearest))
    return chosen


def k_means(features, n, seed, unique_images=True):
    """The pair nearest to each of n centroids of the joint embedding."""
    from sklearn.cluster import (
        KMeans,  # here, because every program imports this file and this one alone takes a second
    )

    centroids = KMeans(n, n_init=1, random_state=seed).fit(features.joint().cpu().numpy()).cluster_centers_
    free = _Free(features.image_index, unique_images)
    return [
        free.best(features.dot(halves))
        for halves in torch.from_numpy(centroids).to(features.texts).view(n, 2, -1)
    ]


def prototypes(features, n, seed, unique_images=True, keep=0.8):
    """PDS's selection (ICLR 2026): the pair nearest to each of n prototypes.

    Of the pairs whose image and text agree best, a part `keep`, images and texts are put into n clusters
    each, and image clusters matched to text clusters by the pairs that they share (Hungarian assignment). A
    prototype is the mean of the pairs that its two clusters share, or joins their centroids where there are
    none.
    """
    from scipy.optimize import linear_sum_assignment  # as in k_means
    from sklearn.cluster import MiniBatchKMeans

    kept = features.clip_scores().argsort(descending=True, stable=True)[
        : max(n, int(len(features.texts) * keep))
    ]
    sides = [features.images[features.image_index[kept]], features.texts[kept]]
    labels, centres = [], []
    for side in sides:
        clusters = MiniBatchKMeans(n, n_init=3, random_state=seed).fit(side.cpu().numpy())
        labels.append(torch.from_numpy(clusters.labels_).long())
        centres.append(torch.from_numpy(clusters.cluster_centers_).to(side))
    shared = torch.zeros(n, n).index_put_((labels[0], labels[1]), torch.ones(len(kept)), accumulate=True)
    free, chosen = _Free(features.image_index, unique_images), []
    for image, text in zip(*linear_sum_assignment(-shared.numpy())):
        both = ((labels[0] == image) & (labels[1] == text)).to(kept.device)
        halves = [
            side[both].mean(0) if both.any() else c[k] for side, c, k in zip(sides, centres, (image, text))
        ]
        chosen.append(free.best(features.dot(torch.stack(halves))))
    return chosen


def take(ranking, image_index, n, unique_images=True):
    """The first n pairs of a ranking, LongTensor [P]; of each image the first only."""
    if unique_images:
        index = image_index[ranking].cpu()
        first = torch.full((int(index.max()) + 1,), len(index)).scatter_reduce(
            0, index, torch.arange(len(index)), "amin"
        )
        ranking = ranking[first[first < len(index)].sort().values]
    return ranking[:n].tolist()


def most_forgotten(events, learned, n, image_index, generator, unique_images=True):
    """Pairs by forgetting events (Toneva et al. 2019), those never learned first; ties in random order.

    events, learned: [P] summed over experts.
    """
    never = learned == 0
    order = torch.randperm(len(events), generator=generator)
    scores = torch.where(never, torch.inf, events.double())[order]
    return take(order[scores.argsort(descending=True, stable=True)], image_index, n, unique_images)


def by_vas(features, n, *, fraction=1.0, rounds=None, unique_images=True):
    """The n pairs of highest VAS (score.py) by image features, after a CLIP cut to a `fraction` of the pool;
    rounds: VAS-D.

    S is that of the pool itself: all pairs, or of each image the pair whose caption the expert thinks best.
    """
    clip = features.clip_scores().cpu().double()
    ranking = clip.argsort(descending=True, stable=True)
    pool = torch.tensor(take(ranking, features.image_index, len(ranking), unique_images))
    embeddings = features.images[features.image_index[pool]].cpu().double()
    moment = embeddings.T @ embeddings / len(pool)
    kept = int(len(pool) * fraction)
    if kept < n:
        raise UserError(
            f"--fraction {fraction} of {len(pool)} pairs leaves {kept}, fewer than --num_queries {n}."
        )
    pool, embeddings = pool[:kept], embeddings[:kept]  # in the order of their CLIP scores
    if rounds:
        for state in shrink([embeddings.float().numpy()], np.arange(kept), moment.numpy(), n, rounds):
            left = torch.from_numpy(state.alive)
        return pool[left].tolist()
    return pool[vas_scores(embeddings, moment).argsort(descending=True, stable=True)[:n]].tolist()


class Asked(NamedTuple):
    """What a method of CORESETS is asked for: `n` pairs of all train pairs, whose images are `image_index`
    (LongTensor [P]), of different images if `unique_images`.

    features() -> PairFeatures and forgetting() -> (events [P], learned [P]) are called where a method needs
    them; `fraction` and `rounds` are VAS's. Random numbers come from `generator`.
    """

    n: int
    image_index: torch.Tensor
    unique_images: bool
    generator: torch.Generator
    features: Callable
    forgetting: Callable
    fraction: float
    rounds: int


def _at_random(asked):
    order = torch.randperm(len(asked.image_index), generator=asked.generator)
    return take(order, asked.image_index, asked.n, asked.unique_images)


def _by_k_means(asked):
    seed = int(torch.randint(1 << 31, (), generator=asked.generator))
    return k_means(asked.features(), asked.n, seed, asked.unique_images)


def _by_prototypes(asked):
    seed = int(torch.randint(1 << 31, (), generator=asked.generator))
    return prototypes(asked.features(), asked.n, seed, asked.unique_images)


def _by_forgetting(asked):
    events, learned = asked.forgetting()
    return most_forgotten(events, learned, asked.n, asked.image_index, asked.generator, asked.unique_images)


def _by_clip(asked):
    features = asked.features()
    ranking = features.clip_scores().argsort(descending=True, stable=True)
    return take(ranking, features.image_index, asked.n, asked.unique_images)


def _by_vas(asked, rounds=None):
    cut = {"fraction": asked.fraction, "rounds": rounds, "unique_images": asked.unique_images}
    return by_vas(asked.features(), asked.n, **cut)


# Each is called with what is Asked, and gives a list of n positions among the train pairs.
CORESETS = {
    "random": _at_random,
    "herding": lambda asked: herding(asked.features(), asked.n, asked.unique_images),
    "k-center": lambda asked: k_center(asked.features(), asked.n, asked.unique_images),
    "k-means": _by_k_means,
    "pds": _by_prototypes,
    "forgetting": _by_forgetting,
    "clip": _by_clip,
    "vas": _by_vas,
    "vas_d": lambda asked: _by_vas(asked, asked.rounds),
}


def select(
    method, task, n, generator, *, features=None, forgetting=None, unique_images=True, fraction=1.0, rounds=10
):
    """LongTensor [n] of the train pairs that `method`, one of CORESETS, chooses; the rest is as Asked."""
    most, what = len(task.train), "train pairs"
    if unique_images:
        most, what = len(task.train.image_paths), "train images"
    if n > most:
        raise UserError(f"--num_queries {n} asks for more pairs than the {most} {what} of {task.dataset}.")
    if method not in CORESETS:
        raise UserError(f"Coreset method {method!r} is unknown: expected one of {', '.join(CORESETS)}.")
    asked = Asked(n, task.train.image_index, unique_images, generator, features, forgetting, fraction, rounds)
    return torch.tensor(CORESETS[method](asked))

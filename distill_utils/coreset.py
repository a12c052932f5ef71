"""Real pairs as a synthetic set with S = I: `python -m distill_utils.coreset herding --dataset toy --num_queries 50`.

With --metadata_dir, `vas` and `vas_d` filter a DataComp pool instead; `moment` and `validate` belong to that (vas.py).
Features are those of an expert's two towers; those of a pair, (image, text) / sqrt(2), are unit vectors of its joint embedding.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from distill_utils import config, vas
from distill_utils.errors import UserError
from distill_utils.files import load_tensors, write_array
from distill_utils.flags import experts_folder, made_with, model_maker, open_task
from distill_utils.run import Run, generator, run_program
from distill_utils.similarity import IdentitySimilarity
from distill_utils.synthetic import SyntheticSet
from distill_utils.trajectory import ExpertTrajectories, forgetting_files, load_flat, require_same_experts

_POOL_COMMANDS = {"vas": config.vas_parser, "moment": config.moment_parser, "validate": config.validate_parser}


class PairFeatures(NamedTuple):
    """Unit features: images [I, D], texts [P, D], and image_index [P], the image of each pair."""

    images: torch.Tensor
    texts: torch.Tensor
    image_index: torch.Tensor

    def mean(self):
        """The mean joint embedding, as its image and text halves."""
        weights = torch.bincount(self.image_index, minlength=len(self.images)).to(self.images)
        return torch.stack([weights @ self.images / len(self.texts), self.texts.mean(dim=0)]) / 2**0.5

    def row(self, pair):
        """Of one pair, as its halves [2, D]."""
        return torch.stack([self.images[self.image_index[pair]], self.texts[pair]]) / 2**0.5

    def dot(self, halves):
        """Every pair's joint embedding times one given as its halves: [P]."""
        return ((self.images @ halves[0])[self.image_index] + self.texts @ halves[1]) / 2**0.5

    def joint(self):
        """[P, 2 D]."""
        return torch.cat([self.images[self.image_index], self.texts], dim=1) / 2**0.5

    def clip_scores(self):
        """The cosine of each pair's image and text, [P]."""
        return torch.cat([(self.images[index] * texts).sum(dim=1) for index, texts in zip(self.image_index.split(8192), self.texts.split(8192))])


@torch.no_grad()
def expert_features(model, task, device):
    """PairFeatures of all train pairs by a model."""
    model = model.to(device).eval()
    images = torch.cat([model.encode_images(batch) for batch in task.train_images(256, device)])
    texts = torch.cat([model.encode_texts(batch.to(device)) for batch in task.train_texts.split(8192)])
    return PairFeatures(images, texts, task.train.image_index.to(device))


# --- greedy selections ---


class _Free:
    """Which pairs may still be taken."""

    def __init__(self, image_index, unique_images):
        self.image_index, self.unique = image_index, unique_images
        self.mask = torch.ones(len(image_index), dtype=torch.bool, device=image_index.device)

    def best(self, scores):
        """Takes the free pair of the highest score, the first of equals."""
        pair = int(scores.masked_fill(~self.mask, -torch.inf).argmax())
        self.mask &= self.image_index != self.image_index[pair] if self.unique else torch.arange(len(self.mask), device=self.mask.device) != pair
        return pair


def herding(features, n, unique_images=True):
    """Each pair brings the mean of those chosen as near as any can to the mean of all (Welling 2009): a list of n."""
    mean, free = features.mean(), _Free(features.image_index, unique_images)
    chosen, total = [], torch.zeros_like(mean)
    for _ in range(n):
        wanted = (len(chosen) + 1) * mean - total  # embeddings are of one length: the nearest has the largest product
        chosen.append(free.best(features.dot(wanted)))
        total += features.row(chosen[-1])
    return chosen


def k_center(features, n, unique_images=True):
    """Farthest first (Gonzalez 1985): the pair nearest to the mean, then always the one farthest from all those chosen."""
    free = _Free(features.image_index, unique_images)
    chosen = [free.best(features.dot(features.mean()))]
    nearest = torch.full((len(features.texts),), -torch.inf, device=features.texts.device)  # product with the nearest chosen one
    while len(chosen) < n:
        nearest = torch.maximum(nearest, features.dot(features.row(chosen[-1])))
        chosen.append(free.best(-nearest))
    return chosen


def k_means(features, n, seed, unique_images=True):
    """The pair nearest to each of n centroids of the joint embedding."""
    from sklearn.cluster import KMeans  # here, because every program imports this file and this one alone takes a second

    centroids = KMeans(n, n_init=1, random_state=seed).fit(features.joint().cpu().numpy()).cluster_centers_
    free = _Free(features.image_index, unique_images)
    return [free.best(features.dot(halves)) for halves in torch.from_numpy(centroids).to(features.texts).view(n, 2, -1)]


# --- ranked selections ---


def take(ranking, image_index, n, unique_images=True):
    """The first n pairs of a ranking, LongTensor [P]; of each image the first only."""
    if unique_images:
        index = image_index[ranking].cpu()
        first = torch.full((int(index.max()) + 1,), len(index)).scatter_reduce(0, index, torch.arange(len(index)), "amin")
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
    """The n pairs of highest VAS (vas.py) by image features, after a CLIP cut to a `fraction` of the pool; rounds: VAS-D.

    S is that of the pool itself: all pairs, or of each image the pair whose caption the expert thinks best.
    """
    clip = features.clip_scores().cpu().double()
    ranking = clip.argsort(descending=True, stable=True)
    pool = torch.tensor(take(ranking, features.image_index, len(ranking), unique_images))
    embeddings = features.images[features.image_index[pool]].cpu().double()
    moment = embeddings.T @ embeddings / len(pool)
    kept = int(len(pool) * fraction)
    if kept < n:
        raise UserError(f"--fraction {fraction} of {len(pool)} pairs leaves {kept}, fewer than --num_queries {n}.")
    pool, embeddings = pool[:kept], embeddings[:kept]  # in the order of their CLIP scores
    if rounds:
        return pool[torch.from_numpy(vas.shrink(embeddings.float().numpy(), np.arange(kept), moment, n, rounds))].tolist()
    return pool[vas.vas_scores(embeddings, moment).argsort(descending=True, stable=True)[:n]].tolist()


def select(method, task, n, generator, *, features=None, forgetting=None, unique_images=True, fraction=1.0, rounds=10):
    """LongTensor [n] of the train pairs that `method`, one of config.CORESETS, chooses; of n different images if `unique_images`.

    features() -> PairFeatures and forgetting() -> (events, learned) are called where a method needs them.
    """
    most = len(task.train.image_paths) if unique_images else len(task.train)
    if n > most:
        raise UserError(
            f"--num_queries {n} asks for more pairs than the {most} {'train images' if unique_images else 'train pairs'} of {task.dataset}."
        )
    seed = int(torch.randint(1 << 31, (), generator=generator)) if method == "k-means" else None
    choices = {
        "random": lambda: take(torch.randperm(len(task.train), generator=generator), task.train.image_index, n, unique_images),
        "herding": lambda: herding(features(), n, unique_images),
        "k-center": lambda: k_center(features(), n, unique_images),
        "k-means": lambda: k_means(features(), n, seed, unique_images),
        "forgetting": lambda: most_forgotten(*forgetting(), n, task.train.image_index, generator, unique_images),
        "clip": lambda: _by_clip(features(), n, unique_images),
        "vas": lambda: by_vas(features(), n, fraction=fraction, unique_images=unique_images),
        "vas_d": lambda: by_vas(features(), n, fraction=fraction, rounds=rounds, unique_images=unique_images),
    }
    if method not in choices:
        raise UserError(f"Coreset method {method!r} is unknown: expected one of {', '.join(choices)}.")
    return torch.tensor(choices[method]())


def _by_clip(features, n, unique_images):
    return take(features.clip_scores().argsort(descending=True, stable=True), features.image_index, n, unique_images)


# --- sets ---


def real_set(task, pairs, meta, similarity=None, **learned):
    """A synthetic set of the real train pairs `pairs` (LongTensor [n]); S = I unless given."""
    images, texts, captions = task.real_pairs(pairs)
    similarity = similarity or IdentitySimilarity(len(pairs))
    return SyntheticSet(images, texts, similarity, meta=meta | {"source_captions": captions}, **learned)


def read_forgetting(folder, pairs):
    """(events, learned) [P], summed over the experts of a folder, as buffer.py recorded them."""
    files = forgetting_files(folder)
    if not files:
        raise UserError(f"{folder} holds no forgetting_*.pt, which buffer.py records while it trains experts (published buffers have none).")
    totals = [torch.zeros(pairs, dtype=torch.long) for _ in range(2)]
    for file in files:
        record = load_tensors(file)
        values = [record.get(key) for key in ("events", "learned")] if isinstance(record, dict) else [None]
        if not all(isinstance(value, torch.Tensor) and value.shape == (pairs,) for value in values):
            raise UserError(f"{file} does not hold the forgetting events of {pairs} train pairs: it is of another data set.")
        for total, value in zip(totals, values):
            total += value.long()
    return totals


def open_features(args, task, device):
    """PairFeatures by the last snapshot of the expert that the flags name."""
    folder = experts_folder(args)
    require_same_experts(folder, made_with(args, task))
    experts, model = ExpertTrajectories(folder), model_maker(args, task, device)()
    if args.expert >= len(experts):
        raise UserError(f"--expert {args.expert} does not exist: {folder} holds {len(experts)} experts, counted from 0.")
    experts.require_fits(model, 0, 0)
    return expert_features(load_flat(model, experts.last(args.expert)), task, device)


def main(argv=None):
    argv = list(argv)
    what = argv[0] if argv else ""
    pool = any(token.split("=")[0] == "--metadata_dir" for token in argv)
    if what in ("moment", "validate") or what in ("vas", "vas_d") and pool:
        command = "vas" if what == "vas_d" else what
        args = config.parse(_POOL_COMMANDS[command](__doc__), argv[1:])
        if what == "vas_d" and args.target_variance:
            raise UserError("vas_d takes its second moment from the pool: leave --target_variance out, or call vas.")
        return vas.run_command(command, args)
    return choose_coreset(config.parse(config.coreset_parser(__doc__), argv))


def choose_coreset(args):
    """The file of the set."""
    run = Run(args, "coreset", default_name=f"coreset_{args.method}_{args.num_queries}")
    task = open_task(args, run.device)
    pairs = select(
        args.method,
        task,
        args.num_queries,
        generator(args.seed, "coreset"),
        features=lambda: open_features(args, task, run.device),
        forgetting=lambda: read_forgetting(experts_folder(args), len(task.train)),
        unique_images=args.unique_images,
        fraction=args.fraction,
        rounds=args.num_iters,
    )
    meta = made_with(args, task) | {"loss": args.loss_type, "temperature": args.temperature, "step": 0, "coreset": args.method}
    path = Path(run.directory) / "distilled_0.pt"
    real_set(task, pairs, meta).save(path)
    write_array(path.with_name("indices.npy"), task.numbers[pairs].numpy())
    print(f"{len(pairs)} real pairs by {args.method}: {path}")
    return path


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Variance Alignment Score (Wang et al. 2024, arXiv 2402.02055): which pairs to keep of a pool, of a hundred
or of a billion.

    VAS(f) = f^T S f,    S = 1/N sum_j g_j g_j^T                                                      (1)

f is the unit embedding of a pair's image, S the uncentred second moment of a reference set; so VAS(f) =
mean_j (f . g_j)^2, between 0 and 1. `vas` has S from a prior set, such as ImageNet's training images. VAS-D
has none: S is that of the pool itself, estimated anew while the pool shrinks over T rounds,

    S' = (n S - R^T R) / (n - c),    R [c, D] the rows just removed.                                  (2)

Nothing here is larger than a block of rows, or than a few numbers a survivor, and the result is the same to
the byte whatever the
blocks, the order of the files and the number of processes: scores are taken in tiles of one shape, moments
added up as integers.
"""

import hashlib
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from distill_utils.runs import processes
from distill_utils.runs.devices import resolve_device
from distill_utils.runs.errors import UserError
from distill_utils.runs.processes import ALONE
from distill_utils.runs.reading import read_json
from distill_utils.runs.tensors import load_tensors
from distill_utils.runs.writing import write_array, write_json
from distill_utils.selection.pool import (
    UID,
    Pool,
    allocate,
    contains,
    read_subset,
    require_in_pool,
    sortable,
    write_subset,
)

ARCHITECTURES = {
    "l14": ("clip_l14_similarity_score", "l14_img"),
    "b32": ("clip_b32_similarity_score", "b32_img"),
}  # column, member
TILE = 1024  # rows scored at once
_UNIT = 1e-2  # how far from 1 the norm of a unit vector in float16 may be
_PART = np.dtype([("f0", "u8"), ("f1", "u8"), ("vas", "f4")])


# --- the score ---


def vas_scores(features, moment):
    """(1) for features [B, D] and S [D, D], tensors of one dtype: [B]."""
    return (features @ moment * features).sum(dim=1)


class Tiles:
    """Rows of unit vectors as float32 tiles [TILE, width] on a device.

    Of one shape always, so that what a row gives does not depend on how many rows came along with it.
    """

    def __init__(self, width, device="cpu", normalise=False):
        self._tile, self.normalise = torch.zeros(TILE, width, device=device), normalise

    def _load(self, rows, source):
        used = self._tile[: len(rows)]
        used.copy_(torch.from_numpy(rows))
        self._tile[len(rows) :] = 0
        norms = self._norms(used, source)
        if self.normalise:
            used /= norms[:, None]
        return self._tile

    def _norms(self, vectors, source):
        """Of vectors [n, width], [n]; UserError where one is not a unit vector, or cannot be made one."""
        norms = torch.linalg.vector_norm(vectors, dim=1)
        good = norms.isfinite() & (norms > 0) if self.normalise else (norms - 1).abs() <= _UNIT
        if not good.all():
            norm = norms[~good][0].item()
            hint = "" if not math.isfinite(norm) or norm == 0 else ": --normalize makes them so"
            raise UserError(
                f"{source}: an embedding has the norm {norm:.4g}; VAS is about unit vectors{hint}."
            )
        return norms

    def check(self, rows, source):
        """UserError unless all rows [n, width] are what scores and products take."""
        for begin in range(0, len(rows), TILE):
            self._norms(torch.from_numpy(rows[begin : begin + TILE]).float(), source)

    def scores(self, rows, moment, source):
        """(1) of rows [n <= TILE, width], a numpy array, with S float32 on the device: float32 [n]."""
        return vas_scores(self._load(rows, source), moment)[: len(rows)].cpu().numpy()

    def product(self, rows, source):
        """Sum of f f^T over the rows, float64 [width, width] on the device."""
        rows = self._load(rows, source)[: len(rows)].double()
        return rows.T @ rows


class SecondMoment:
    """Sums of f f^T over unit vectors as fixed-point integers: the same in whatever order, and on whatever
    process, tiles are added.

    Scaled so that the sums of `most` rows fit in 62 bits: the resolution of S is 10^-18.
    """

    def __init__(self, width, most):
        self.scale = 2.0 ** (61 - math.ceil(math.log2(most + 1)))
        self.sums, self.rows = torch.zeros(width, width, dtype=torch.int64), 0

    def add(self, product, rows):
        self.sums += (product * self.scale).round().long().cpu()
        self.rows += rows

    def subtract(self, other):
        """Take out the rows of another moment of the same scale."""
        self.sums -= other.sums
        self.rows -= other.rows

    def value(self):
        """S, float64 [width, width]."""
        return self.sums.double() / self.scale / self.rows


def second_moment(
    features, rows=None, *, most=None, device="cpu", normalise=False, source="embeddings", world=ALONE
):
    """SecondMoment of an array [N, D], such as a memory map, or of its rows `rows` [n]; processes of `world`
    divide the tiles.
    """
    n = len(features) if rows is None else len(rows)
    tiles, moment = Tiles(features.shape[1], device, normalise), SecondMoment(features.shape[1], most or n)
    for number, begin in enumerate(range(0, n, TILE)):
        if world.owns(number):
            part = slice(begin, begin + TILE)
            tile = np.array(features[part if rows is None else rows[part]])
            moment.add(tiles.product(tile, source), len(tile))
    return sum_up(moment, world, device)


def sum_up(moment, world, device):
    """The moment of all processes' rows, on each of them."""
    if world.size > 1:
        moment.sums = world.add_up(moment.sums.to(device)).cpu()
        moment.rows = int(world.add_up(torch.tensor([moment.rows], device=device)))
    return moment


# --- cuts ---


def nth_largest(stream, n):
    """(value, how many are larger) of the n-th largest number that stream() yields, arrays of float64; it is
    read four times.

    A radix selection: exact for any values, in the memory of one histogram.
    """
    prefix, above = 0, 0
    for shift in (48, 32, 16, 0):
        histogram = np.zeros(1 << 16, np.int64)
        for values in stream():
            keys = _order_key(values)
            if shift < 48:
                keys = keys[keys >> np.uint64(shift + 16) == prefix]
            histogram += np.bincount(
                ((keys >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << 16
            )
        from_top = above + histogram[::-1].cumsum()[::-1]  # with this digit or a higher one
        digit = int(np.flatnonzero(from_top >= n)[-1])
        above = int(from_top[digit] - histogram[digit])
        prefix = prefix << 16 | digit
    bits = np.uint64(prefix)
    sign = np.uint64(1 << 63)
    return float((bits ^ sign if bits & sign else ~bits).view(np.float64)), above


def _order_key(values):
    """uint64 that sort as the float64 values do."""
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64) + np.uint64(0)
    sign = np.uint64(1 << 63)
    bits[bits == sign] = 0  # -0 is 0
    return np.where(bits & sign, ~bits, bits | sign)


class Cut(NamedTuple):
    """What is kept: scores above `score`, and those equal to it up to the uid `last` (sortable bytes; None:
    all of them).
    """

    score: float
    last: bytes | None = None

    def keeps(self, scores, uids):
        """Which of float64 scores [b] with sortable uids [b]."""
        ties = scores == self.score
        if self.last is not None and ties.any():
            ties[ties] = uids[ties] <= np.bytes_(self.last)
        return (scores > self.score) | ties


EVERYTHING = Cut(-math.inf)


def best(stream, n, values=None):
    """The Cut that keeps exactly n of what stream() yields, (scores, sortable uids) a block: highest score
    first, then lowest uid.

    values() yields the scores alone, where that is cheaper.
    """
    score, above = nth_largest(values or (lambda: (scores for scores, _ in stream())), n)
    ties = np.concatenate([uids[scores == score] for scores, uids in stream()])
    wanted = n - above
    return Cut(score, None if wanted == len(ties) else bytes(np.sort(ties)[wanted - 1]).ljust(16, b"\0"))


def _summary(stream, cut):
    """{"kept", "threshold", "mean", "max"} of the scores that a cut keeps."""
    count, total, low, high = 0, 0.0, math.inf, -math.inf
    for scores, uids in stream():
        kept = scores[cut.keeps(scores, uids)]
        if len(kept):
            count, total = count + len(kept), total + float(kept.sum(dtype=np.float64))
            low, high = min(low, float(kept.min())), max(high, float(kept.max()))
    return {"kept": count, "threshold": low, "mean": total / max(count, 1), "max": high}


# --- VAS-D ---


def shrink(
    features,
    order,
    first,
    target,
    rounds,
    *,
    device="cpu",
    normalise=False,
    world=ALONE,
    bound=True,
    told=None,
):
    """VAS-D: which `target` rows of features [K, D] are left after `rounds` rounds, as sorted positions.

    first: S of the first round, float64 [D, D], that of the whole pool. order: [K] distinct and sortable; of
    rows with equal scores those later in it go first. Each round removes the worst ceil((K - target) /
    rounds) by the S of those still there, (2).
    bound: a row is scored again only where it might be among the worst: along any unit f the score moved from
    S to S' by no less than the smallest and no more than the largest eigenvalue of S' - S. The result is the
    same without. told(round, scored, left) after each.
    """
    tiles, alive = Tiles(features.shape[1], device, normalise), np.arange(len(features))
    chunk = math.ceil((len(features) - target) / rounds)
    moment = second_moment(features, device=device, normalise=normalise, world=world)
    current = first.float()
    scores = np.zeros(len(features), np.float32)
    low_then, high_then = (
        np.zeros(len(features)),
        np.zeros(len(features)),
    )  # the bounds when a row was last scored
    low = high = 0.0
    for number in range(rounds):
        count = min(chunk, len(alive) - target)
        if not count:
            break
        if number == 0 or not bound:
            again = np.arange(len(alive))
        else:
            slack = (
                features.shape[1] * np.finfo(np.float32).eps * float(current.norm())
            )  # more than the rounding of a score
            most = np.partition(scores + (high - high_then) + slack, count - 1)[count - 1]
            again = np.flatnonzero(
                scores + (low - low_then) - slack <= most
            )  # `count` rows are at most that: the others stay
        scores[again] = _scored(features, alive[again], tiles, current, world, device)
        low_then[again], high_then[again] = low, high
        gone = np.zeros(len(alive), bool)
        gone[again[_worst(scores[again], order[alive[again]], count)]] = True
        moment.subtract(
            second_moment(
                features, alive[gone], most=len(features), device=device, normalise=normalise, world=world
            )
        )  # (2)
        alive, scores, low_then, high_then = (
            values[~gone] for values in (alive, scores, low_then, high_then)
        )
        if told:
            told(number + 1, len(again), len(alive))
        following = moment.value().float()
        if bound:
            eigenvalues = np.linalg.eigvalsh((following.double() - current.double()).numpy())
            low, high = low + eigenvalues[0], high + eigenvalues[-1]
        current = following
    return alive


def _scored(features, rows, tiles, moment, world, device):
    scores, moment = np.zeros(len(rows), np.float32), moment.to(device)
    for number, begin in enumerate(range(0, len(rows), TILE)):
        if world.owns(number):
            part = slice(begin, begin + TILE)
            scores[part] = tiles.scores(features[rows[part]], moment, "embeddings")
    return world.add_up(torch.from_numpy(scores).to(device)).cpu().numpy()  # others' parts are 0 here


def _worst(scores, order, count):
    """Positions of the `count` lowest scores; of equal ones those highest in `order`."""
    limit = np.partition(scores, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores < limit), np.flatnonzero(scores == limit)
    return np.concatenate([below, ties[np.argsort(order[ties], kind="stable")[::-1][: count - len(below)]]])


# --- a pool on disk ---


class Selection:
    """The work on one pool under one set of settings: what is finished lies in a folder beside the subset,
    and is not done twice.
    """

    def __init__(
        self,
        pool,
        save_path,
        *,
        given=None,
        fraction=None,
        threshold=None,
        normalise=False,
        device="cpu",
        world=ALONE,
    ):
        """given: sortable uids that the pool is restricted to. fraction of the pool, or threshold: of the
        CLIP score.
        """
        self.pool, self.given, self.normalise, self.device, self.world = pool, given, normalise, device, world
        self.save_path = Path(save_path)
        self.size = len(pool) if given is None else sum(len(uids) for _, uids in self._clip_scores())
        if not self.size:
            raise UserError(f"None of the --given_uids_path is in {pool.folder}.")
        self.cut = EVERYTHING
        if threshold is not None:
            self.cut = Cut(threshold)
        elif fraction is not None:
            values = (
                (lambda: (scores for file in pool.files for scores in pool.scores(file)))
                if given is None
                else None
            )
            self.cut = best(self._clip_scores, _part_of(self.size, fraction, "--fraction"), values)
        self.clip = _summary(self._clip_scores, self.cut) if pool.score else None
        self.survivors = self.clip["kept"] if self.clip else self.size
        if not self.survivors:
            raise UserError(
                f"No pair of {pool.folder} has a {pool.score} of at least {self.cut.score}: nothing is left to score."
            )

    def _clip_scores(self):
        """(scores, sortable uids) a block, of the pairs of the pool; zeros where no CLIP score is read."""
        for file in self.pool.files:
            for uids, scores in self.pool.rows(file):
                keys = sortable(uids)
                scores = np.zeros(len(keys)) if scores is None else scores
                if self.given is not None:
                    mine = contains(self.given, keys)
                    keys, scores = keys[mine], scores[mine]
                yield scores, keys

    def _masks(self, file):
        """(UID [b], which are of the pool, which survive the CLIP cut) a block."""
        for uids, scores in self.pool.rows(file):
            keys = sortable(uids)
            mine = np.ones(len(keys), bool) if self.given is None else contains(self.given, keys)
            yield uids, mine, mine & self.cut.keeps(np.zeros(len(keys)) if scores is None else scores, keys)

    def open_folder(self, *settings):
        """The folder of the parts, its name made from everything that they depend on."""
        given = None if self.given is None else _digest(self.given)
        cut = [self.cut.score, self.cut.last and self.cut.last.hex()]
        names = [self.pool.uid, self.pool.score, self.pool.features]
        key = hashlib.sha256(
            json.dumps([self.pool.describe(), names, given, cut, self.normalise, *settings]).encode()
        ).hexdigest()[:12]
        return self.save_path.with_name(f"{self.save_path.name}.parts") / key

    def each_file(self, folder, work, what):
        """work(file, path) for every file of the pool whose `path` in the folder is missing, divided among
        the processes.
        """
        paths = {file: folder / f"{file.parquet.stem}.npy" for file in self.pool.files}
        missing = [file for file in self.pool.files if not paths[file].exists()]
        self.world.barrier()  # until all have looked
        if done := len(paths) - len(missing):
            self._say(f"{done} of {len(paths)} files are finished already")
        mine = [file for n, file in enumerate(missing) if self.world.owns(n)]
        for file in tqdm(mine, desc=what, unit="file", disable=not self.world.first):
            work(file, paths[file])
        self.world.barrier()
        return paths

    def _say(self, text):
        if self.world.first:
            print(text)

    def by_prior(self, moment, *, fraction=None, threshold=None):
        """Sortable uids of the pairs with the highest VAS by S, float64 [D, D], and the summary of their
        scores.
        """
        folder = self.open_folder(_digest(moment.numpy()))
        tiles, current = Tiles(self.pool.width, self.device, self.normalise), moment.float().to(self.device)
        paths = self.each_file(folder, partial(self._score_file, tiles, current), "VAS")

        def scores():
            for path in paths.values():
                part = np.load(path, mmap_mode="r")
                for begin in range(0, len(part), 1 << 17):
                    block = part[begin : begin + (1 << 17)]
                    yield block["vas"].astype(np.float64), sortable(block[["f0", "f1"]])

        cut = Cut(threshold) if threshold is not None else best(scores, self._target(fraction))
        chosen = np.concatenate([uids[cut.keeps(values, uids)] for values, uids in scores()])
        if not len(chosen):
            raise UserError(f"No pair has a VAS of at least --threshold_vas {threshold}.")
        return chosen, _summary(scores, cut)

    def _target(self, fraction):
        target = _part_of(self.size, fraction, "--fraction_vas")
        if target > self.survivors:
            raise UserError(
                f"--fraction_vas {fraction} of {self.size:,} pairs is {target:,}, but the CLIP cut leaves {self.survivors:,}: "
                "both fractions are of the pool."
            )
        return target

    def _score_file(self, tiles, moment, file, path):
        """The VAS of a file's survivors, in tiles of survivors."""
        parts = [np.empty(0, _PART)]
        for uids, rows in self._tiles_of(
            file, lambda mine, kept: kept, lambda *block: tiles.check(block[-1], file.npz)
        ):
            part = np.empty(len(rows), _PART)
            part["f0"], part["f1"], part["vas"] = uids["f0"], uids["f1"], tiles.scores(rows, moment, file.npz)
            parts.append(part)
        write_array(path, np.concatenate(parts))

    def _tiles_of(self, file, which, look):
        """(UID [n], rows [n, D]) in tiles of the rows that which(of the pool, survivors) says, wherever the
        blocks end.

        look(UID [b], of the pool, survivors, rows [b, D]) is shown every block as it was read.
        """
        uids, rows, waiting = [], [], 0
        for (names, *masks), features in zip(self._masks(file), self.pool.feature_blocks(file), strict=True):
            look(names, *masks, features)
            chosen = which(*masks)
            uids.append(names[chosen])
            rows.append(features if chosen.all() else features[chosen])
            waiting += len(rows[-1])
            if waiting >= TILE:
                names, block = np.concatenate(uids), rows[0] if len(rows) == 1 else np.concatenate(rows)
                whole = waiting // TILE * TILE
                for begin in range(0, whole, TILE):
                    yield names[begin : begin + TILE], block[begin : begin + TILE]
                uids, rows, waiting = [names[whole:]], [block[whole:].copy()], waiting - whole
        if waiting:
            yield np.concatenate(uids), np.concatenate(rows)

    def by_rounds(self, fraction, rounds, bound=True):
        """VAS-D: sortable uids that are left, and {"kept", "rounds", "scored", "seconds"}."""
        target = self._target(fraction)
        folder = self.open_folder("rounds")
        counts = {file: sum(int(kept.sum()) for *_, kept in self._masks(file)) for file in self.pool.files}
        begin = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist()))
        dtype = self.pool.dtype
        stores = folder / "features.bin", folder / "uids.bin"
        if self.world.first:
            for store, width in zip(stores, (self.pool.width * dtype.itemsize, UID.itemsize)):
                allocate(store, self.survivors * width)
        self.world.barrier()
        features = np.memmap(stores[0], dtype, "r+", shape=(self.survivors, self.pool.width))
        uids = np.memmap(stores[1], UID, "r+", shape=(self.survivors,))
        tiles = Tiles(self.pool.width, self.device, self.normalise)

        def gather(file, path):
            """Survivors to their places, the sums of the whole file's f f^T to `path`."""
            moment, at = SecondMoment(self.pool.width, self.size), begin[file]

            def keep(names, mine, kept, rows):
                nonlocal at
                place = slice(at, at + int(kept.sum()))
                uids[place], features[place], at = names[kept], rows[kept], place.stop

            for _, rows in self._tiles_of(file, lambda mine, kept: mine, keep):
                moment.add(tiles.product(rows, file.npz), len(rows))
            features.flush()
            uids.flush()
            write_array(path, moment.sums.numpy())

        moment = SecondMoment(self.pool.width, self.size)
        for path in self.each_file(folder, gather, "gathering survivors").values():
            moment.sums += torch.from_numpy(np.load(path))
        moment.rows = self.size
        order, scored = sortable(uids), 0
        bar = tqdm(total=rounds, desc="VAS-D", unit="round", disable=not self.world.first)

        def told(number, again, left):
            nonlocal scored
            scored += again
            bar.update()
            bar.set_postfix_str(f"{left:,} left, {again:,} scored")

        began = time.perf_counter()
        with bar:
            left = shrink(
                features, order, moment.value(), target, rounds,
                device=self.device, normalise=self.normalise, world=self.world, bound=bound, told=told,
            )  # fmt: skip
        return order[left], {
            "kept": len(left),
            "rounds": rounds,
            "scored": scored,
            "seconds": round(time.perf_counter() - began, 2),
        }

    def write(self, chosen, summary, settings):
        """The subset, and beside it a JSON of how it came about. Returns what the JSON says."""
        if not self.world.first:
            return None
        repeated = write_subset(self.save_path, chosen)
        subset = read_subset(self.save_path)
        facts = {
            "pool": self.size,
            "files": len(self.pool.files),
            "clip": self.clip,
            "vas": summary,
            "uids": len(subset),
            "repeated_uids": repeated,
            "sha256": _digest(subset),
            "settings": settings,
        }
        write_json(self.save_path.with_suffix(".json"), facts)
        return facts


def _part_of(size, fraction, flag):
    n = int(size * fraction)
    if not n:
        raise UserError(f"{flag} {fraction} of {size:,} pairs is none.")
    return n


def _digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def read_moment(path, width):
    """S, float64 [width, width], from a .npy or a torch-saved tensor; UserError unless it is one."""
    path = Path(path)
    if path.suffix == ".npy":
        try:
            matrix = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error}.") from None
        matrix = torch.from_numpy(matrix) if matrix.dtype.kind == "f" else None
    else:
        matrix = load_tensors(path)
    if (
        not isinstance(matrix, torch.Tensor)
        or not matrix.is_floating_point()
        or matrix.shape != (width, width)
    ):
        found = list(matrix.shape) if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        raise UserError(
            f"{path} holds {found}, where a second moment of embeddings of width {width} is [{width}, {width}]."
        )
    matrix = matrix.double()
    if not matrix.isfinite().all() or not torch.allclose(
        matrix, matrix.T, atol=1e-3 * float(matrix.abs().max())
    ):
        raise UserError(f"{path} is not a second moment: it must be finite and symmetric.")
    return (matrix + matrix.T) / 2


# --- commands ---


def _open_pool(args, score=True):
    column, member = ARCHITECTURES[args.arch]
    block = -(-args.block // TILE) * TILE  # so that tiles begin where they would in any other division
    return Pool(
        args.metadata_dir,
        (args.score_column or column) if score else None,
        args.feature_member or member,
        args.uid_column,
        block,
    )


def choose(args, world, device):
    """`coreset vas --metadata_dir`: what `Selection.write` returns."""
    if args.target_variance and args.num_iters is not None:
        raise UserError(
            "--num_iters belongs to VAS-D, which takes its second moment from the pool: leave --target_variance out, or the rounds."
        )
    if not args.target_variance and args.fraction_vas is None:
        raise UserError(
            "VAS-D (without --target_variance) shrinks the pool to a --fraction_vas of it: give that."
        )
    if args.fraction_vas is None and args.threshold_vas is None:
        raise UserError("Say how much to keep: --fraction_vas of the pool, or --threshold_vas.")
    pool = _open_pool(args, score=args.fraction is not None or args.threshold is not None)
    given = None if args.given_uids_path is None else sortable(read_subset(args.given_uids_path))
    selection = Selection(
        pool, args.save_path, given=given, fraction=args.fraction, threshold=args.threshold, normalise=args.normalize, device=device, world=world
    )  # fmt: skip
    if world.first:
        print(f"pool: {selection.size:,} pairs in {len(pool.files)} files of {pool.folder}")
        if selection.clip:
            print(_told(pool.score, selection.clip, selection.size))
    if args.target_variance:
        moment = read_moment(args.target_variance, pool.width)
        chosen, summary = selection.by_prior(moment, fraction=args.fraction_vas, threshold=args.threshold_vas)
    else:
        moment = None
        chosen, summary = selection.by_rounds(args.fraction_vas, args.num_iters or 1)
    names = "arch fraction threshold fraction_vas threshold_vas num_iters normalize given_uids_path target_variance".split()
    settings = {name: getattr(args, name) for name in names} | {
        "score": pool.score,
        "features": pool.features,
        "uid": pool.uid,
    }
    settings["target_variance_sha256"] = None if moment is None else _digest(moment.numpy())
    facts = selection.write(chosen, summary, settings)
    if world.first:
        if "mean" in summary:
            print(_told("VAS", summary, selection.size))
        else:
            share = summary["scored"] / max(1, summary["rounds"] * selection.survivors)
            print(
                f"VAS-D: {summary['kept']:,} kept ({summary['kept'] / selection.size:.4f} of the pool) after {summary['rounds']} rounds"
            )
            print(f"a round scored {share:.1%} of the survivors on average")
        if facts["repeated_uids"]:
            print(f"{facts['repeated_uids']:,} uids are in the pool more than once and are written once")
        print(f"{facts['uids']:,} uids: {args.save_path}")
    return facts


def _told(name, summary, size):
    return (
        f"{name}: {summary['kept']:,} kept ({summary['kept'] / size:.4f} of the pool), threshold {summary['threshold']:.6f}, "
        f"mean {summary['mean']:.6f}, max {summary['max']:.6f}"
    )


def compute_moment(args, world, device):
    """`coreset moment`: writes S of the embeddings in files, or in a pool, and returns it, float64 [D, D]."""
    if bool(args.features) == bool(args.metadata_dir):
        raise UserError(
            "Give either --features FILE ... or --metadata_dir, whose second moment is to be computed."
        )
    if args.metadata_dir:
        pool = _open_pool(args, score=False)
        moment, tiles = SecondMoment(pool.width, len(pool)), Tiles(pool.width, device, args.normalize)
        for n, file in enumerate(
            tqdm(pool.files, desc="second moment", unit="file", disable=not world.first)
        ):
            for rows in pool.feature_blocks(file) if world.owns(n) else ():
                for begin in range(0, len(rows), TILE):
                    part = rows[begin : begin + TILE]
                    moment.add(tiles.product(part, file.npz), len(part))
        moment = sum_up(moment, world, device)
    else:
        arrays = {path: _read_embeddings(path, args.feature_member) for path in args.features}
        total, widths = sum(map(len, arrays.values())), {array.shape[1] for array in arrays.values()}
        if len(widths) > 1:
            raise UserError(f"The --features have different widths: {', '.join(map(str, sorted(widths)))}.")
        moment = SecondMoment(*widths, total)
        for path, array in arrays.items():
            part = second_moment(
                array, most=total, device=device, normalise=args.normalize, source=path, world=world
            )
            moment.sums += part.sums
            moment.rows += part.rows
    value = moment.value()
    if world.first:
        write_array(Path(args.out), value.numpy())
        write_json(
            Path(args.out).with_suffix(".json"),
            {"rows": moment.rows, "width": len(value), "sha256": _digest(value.numpy())},
        )
        largest = np.linalg.eigvalsh(value.numpy())[-1]
        print(
            f"second moment of {moment.rows:,} embeddings of width {len(value)}, largest eigenvalue {largest:.4f}: {args.out}"
        )
    return value


def _read_embeddings(path, member):
    """[N, D] of floats, memory-mapped where it can be."""
    path = Path(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                if member not in archive:
                    raise UserError(
                        f"{path} has no member {member!r}; it has {', '.join(archive)} (--feature_member)."
                    )
                array = archive[member]
        else:
            tensor = load_tensors(path)
            array = (
                tensor.numpy()
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.bfloat16
                else tensor
            )
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f" or not len(array):
        raise UserError(f"{path} does not hold embeddings, floating point numbers [N, D].")
    return array


def validate(args):
    """`coreset validate`: UserError unless the file is a subset that the resharder takes, of this pool if one
    is given; the number of uids.
    """
    subset = read_subset(args.subset)
    if args.metadata_dir:
        require_in_pool(args.subset, subset, _open_pool(args, score=False))
    sidecar = read_json(Path(args.subset).with_suffix(".json"), {})
    if sidecar.get("sha256", _digest(subset)) != _digest(subset):
        raise UserError(
            f"{args.subset} is not the file that {Path(args.subset).with_suffix('.json')} describes: their hashes differ."
        )
    where = f", each once in {args.metadata_dir}" if args.metadata_dir else ""
    print(f"{args.subset}: {len(subset):,} uids, sorted and distinct{where}")
    return len(subset)


def run_command(what, args):
    """One of the commands vas, moment and validate, in every process of a torchrun job."""
    if what == "validate":
        return validate(args)
    device = resolve_device(args.device)
    return {"vas": choose, "moment": compute_moment}[what](args, processes.join(device), device)

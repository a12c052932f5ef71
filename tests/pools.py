"""Pools in DataComp's files, written by the documented format, and VAS-D the slow way."""

import math

import numpy as np
import pyarrow
import pyarrow.parquet

from distill_utils import coreset
from distill_utils.selection.subset import UID

WIDTH = 16


def unit(rows, width=WIDTH, seed=0):
    """Unit vectors with a mean and a decaying spectrum, as CLIP's embeddings have, float32."""
    numbers = np.random.default_rng(seed)
    vectors = (
        numbers.normal(size=(rows, width)) / (1 + np.arange(width)) ** 0.5 + 0.5 * np.ones(width) / width**0.5
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def shrink_slowly(features, first, target, rounds):
    """VAS-D in float64, everything recomputed every round."""
    alive, features = np.arange(len(features)), features.astype(np.float64)
    moment, chunk = first, math.ceil((len(features) - target) / rounds)
    for _ in range(rounds):
        keep = max(target, len(alive) - chunk)
        scores = ((features[alive] @ moment) * features[alive]).sum(axis=1)
        alive = np.sort(alive[np.argsort(-scores, kind="stable")[:keep]])
        moment = features[alive].T @ features[alive] / len(alive)
    return alive


def random_uids(n, seed=0):
    """UID [n], distinct."""
    numbers = np.random.default_rng(seed).integers(0, 1 << 64, (n, 2), dtype=np.uint64)
    uids = np.empty(n, UID)
    uids["f0"], uids["f1"] = numbers.T
    return uids


def as_hex(uids):
    return [f"{int(high):016x}{int(low):016x}" for high, low in uids.tolist()]


class Made:
    """A pool in memory and on disk: uids, CLIP scores quantised as float16 are, embeddings; rows in file
    order.
    """

    def __init__(
        self, folder, sizes=(5000, 3000, 1200), score="clip_l14_similarity_score", member="l14_img", seed=0
    ):
        self.folder, total = folder, sum(sizes)
        folder.mkdir(parents=True)
        self.uids = random_uids(total, seed)
        self.uids["f0"][:5] = range(5)  # leading zeros
        numbers = np.random.default_rng(seed)
        self.scores = numbers.normal(0.2, 0.05, total).astype(np.float16).round(2).astype(np.float32)
        self.features = unit(total, seed=seed).astype(np.float16)
        begin = 0
        for name, size in zip(("b" * 32, "a" * 32, "c" * 32), sizes):
            part = slice(begin, begin + size)
            columns = {"uid": as_hex(self.uids[part]), "text": ["a caption"] * size, score: self.scores[part]}
            pyarrow.parquet.write_table(
                pyarrow.table(columns), folder / f"{name}.parquet", row_group_size=701
            )
            np.savez(folder / f"{name}.npz", **{member: self.features[part], "l14_txt": self.features[part]})
            begin += size

    def static(self, moment, fraction, fraction_vas, rows=None):
        """The chosen uids as numbers, all at once and in float64."""
        rows = np.arange(len(self.uids)) if rows is None else rows
        numbers = [int(text, 16) for text in as_hex(self.uids)]
        by = lambda scores, n, among: sorted(among, key=lambda i: (-scores[i], numbers[i]))[:n]  # noqa: E731
        survivors = by(self.scores, int(len(rows) * fraction), rows)
        features = self.features.astype(np.float64)
        values = ((features @ moment) * features).sum(axis=1)
        return {numbers[i] for i in by(values, int(len(rows) * fraction_vas), survivors)}


def run(what, folder, out, *flags):
    return coreset.main(
        [what, "--metadata_dir", str(folder), "--save_path", str(out), "--device", "cpu", *map(str, flags)]
    )


def numbers_in(path):
    subset = np.load(path)
    assert (
        subset.dtype == np.dtype("u8,u8") and subset.ndim == 1 and np.array_equal(subset, np.unique(subset))
    )
    return {(int(a) << 64) | int(b) for a, b in subset.tolist()}

"""Filtering a pool: first by CLIP score, then by VAS with the moment of a prior set, or in rounds with the
pool's own. All processes compute parts of files; the first one cuts and holds the uids.
"""

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill_utils.runs.errors import UserError, require
from distill_utils.runs.locks import hold
from distill_utils.runs.signals import Interrupted
from distill_utils.runs.world import ALONE, World
from distill_utils.runs.writing import remove_orphans, write_json
from distill_utils.selection import cuts, parts, subset
from distill_utils.selection.pool import Pool
from distill_utils.selection.rounds import Rounds, shrink
from distill_utils.selection.score import CPU, SecondMoment, Tiles

_SHARE = 20  # saving the rounds of VAS-D takes at most one part in so many of the time


def named(path, bad, drop):
    """How many rows of a file are bad, [[row, fault], ...], and the first five in words; UserError for the
    first unless `drop`.
    """
    names = [f"{path}: row {row} has {fault}" for row, fault in bad[:5]]
    if bad and not drop:
        raise UserError(f"{names[0]} (--bad_rows drop leaves such rows out).")
    return len(bad), names


def bad_rows(files):
    """The same of all files, as the JSON says it."""
    return {"dropped": sum(n for n, _ in files), "first": [name for _, names in files for name in names][:5]}


@dataclass
class Filter:
    """The work on one pool under one set of settings."""

    pool: Pool
    save_path: str
    given: np.ndarray | None = None  # sortable uids that the pool is restricted to
    fraction: float | None = None  # of the pool, by CLIP score
    threshold: float | None = None  # of the CLIP score, instead
    drop: bool = False  # bad rows are left out as if they were not in the pool
    tiles: Tiles = CPU
    world: World = ALONE

    def __post_init__(self):
        self.folder = Path(f"{self.save_path}.parts")
        self._broken = {file.name: [] for file in self.pool.files}  # bad embeddings, [[row, fault], ...]

    @contextmanager
    def alone(self, keep_parts=False):
        """The parts' folder for this command alone; when all went well the parts go away, or are kept."""
        lock = []
        self._first(lambda: lock.append(hold(self.folder / "lock", other="--save_path")))
        remove_orphans(self.folder)
        yield
        if self.world.first and not keep_parts:
            for path in (*self.folder.glob("*.npz"), self.folder / "lock"):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # what earlier code left stays
                self.folder.rmdir()

    def _first(self, function):
        """function() of the first process, on all of them; so are its mistakes."""
        return self.world.map([function], self.tiles.device)[0]

    # --- which rows ---

    def _rows(self, file):
        """(uids, scores, which are in the pool, [[row, fault], ...]) of all rows of a file."""
        uids, scores, good = self.pool.rows(file)
        fault = f"no hexadecimal {self.pool.uid} or no finite {self.pool.score}"
        bad = [[row, fault] for row in np.flatnonzero(~good)]
        mine = good if self.given is None else good & subset.contains(self.given, uids)
        mine[[row for row, _ in self._broken[file.name]]] = False
        return uids, scores, mine, bad

    def _survivors(self, file):
        """(uids, which rows are in the pool, which survive the CLIP cut)."""
        uids, scores, mine, _ = self._rows(file)
        return uids, mine, mine & cuts.keeps(self.cut, scores, uids)

    def _clip_cut(self):
        """[size of the pool, the cut, the summary of what it keeps, bad rows]; reads no features."""
        bad = {}

        def stream():
            for file in self.pool.files:
                uids, scores, mine, without = self._rows(file)
                bad[file.parquet] = named(file.parquet, without, self.drop)
                bad[file.npz] = named(file.npz, self._broken[file.name], self.drop)
                yield scores[mine], uids[mine]

        counts = cuts.count(scores for scores, _ in stream())
        size = int(counts[1].sum())
        n = self.fraction and _part_of(size, self.fraction, "--fraction")
        cut, kept = cuts.cut(counts, stream, n, self.threshold)
        none = f"none is in --given_uids_path, or of at least --threshold {self.threshold}"
        require(kept, f"Of {size:,} pairs of {self.pool.folder} {none}: nothing is left to score.")
        return [size, cut, kept, bad_rows(bad.values())]

    # --- parts ---

    def _each_file(self, make, fraction, what):
        """Write the part of each file unless it is there; make(file) yields its key and then its arrays. All
        once more where the parts name bad embeddings, so that the CLIP cut knows of them. Then the number of
        pairs that --fraction_vas asks for.
        """

        def part(file):
            path, arrays = self._path(file), make(file)
            if not parts.is_part(path, key := next(arrays)):
                parts.write_part(path, key, arrays)
            bad = json.loads(np.load(path)["bad"].item())
            named(file.npz, bad, self.drop)
            return bad

        while True:
            self.size, self.cut, self.clip, self.bad = self._first(self._clip_cut)
            target = fraction and _part_of(self.size, fraction, "--fraction_vas")
            asked = f"--fraction_vas {fraction} of {self.size:,} pairs is {target or 0:,}"
            left = f"the CLIP cut leaves {self.clip['kept']:,}: both fractions are of the pool"
            require(not target or target <= self.clip["kept"], f"{asked}, but {left}.")
            work = [partial(part, file) for file in self.pool.files]
            bar = tqdm(work, desc=what, unit="file", disable=not self.world.first)
            broken = dict(zip(self._broken, self.world.map(bar, self.tiles.device)))
            if broken == self._broken:
                return target
            self._broken = broken

    def _path(self, file):
        return self.folder / f"{file.name}.npz"

    def _key(self, *values):
        """What a part depends on, in one word: these, what is common to all, and the code."""
        common = self.pool.features, self.tiles.normalise, self.tiles.described(), parts.CODE
        return parts.digest(*values, *common)

    # --- the two ways ---

    def by_prior(self, moment, *, fraction=None, threshold=None):
        """(sortable uids of the pairs of highest VAS by S, float64 [D, D]; the summary of their scores), on
        the first process.
        """

        def scores(file):
            """The VAS of every row of a file, which serves any cut."""
            yield self._key("scores", file.content, moment)
            bad, current = [], moment.astype(np.float32)
            blocks = self.tiles.of_blocks(self.pool.feature_blocks(file), bad)
            vas = (np.where(good, self.tiles.scores(rows, current), np.nan) for _, _, rows, good in blocks)
            yield "scores", ((file.rows,), np.float32, vas)
            yield "bad", np.bytes_(json.dumps(bad).encode())

        def stream():
            for file in self.pool.files:
                uids, _, kept = self._survivors(file)
                yield np.load(self._path(file))["scores"][kept], uids[kept]

        target = self._each_file(scores, fraction, "VAS")
        if not self.world.first:
            return None, None
        cut, kept = cuts.cut(cuts.count(scores for scores, _ in stream()), stream, target, threshold)
        require(kept, f"No pair has a VAS of at least --threshold_vas {threshold}.")
        return np.concatenate([uids[cuts.keeps(cut, scores, uids)] for scores, uids in stream()]), kept

    def by_rounds(self, fraction, rounds, bound=True):
        """VAS-D: (sortable uids that are left; {"kept", "rounds", "scored"}), on the first process."""
        width, total, saved = self.pool.width, len(self.pool), self.folder / "rounds.state.npz"

        def gather(file):
            """A file's survivors, and the sums of f f^T over its rows in the pool."""
            _, mine, kept = self._survivors(file)
            yield self._key("survivors", file.content, mine, kept, total)
            moment, bad = SecondMoment(width, total), []

            def survivors():
                for part, rows, vectors, good in self.tiles.of_blocks(self.pool.feature_blocks(file), bad):
                    moment.add(self.tiles, vectors[mine[part] & good])
                    yield rows[kept[part]]

            yield "features", ((int(kept.sum()), width), file.dtype, survivors())
            yield from (("sums", moment.sums), ("bad", np.bytes_(json.dumps(bad).encode())))

        target = self._each_file(gather, fraction, "gathering survivors")
        if not self.world.first:
            return None, None
        paths = list(map(self._path, self.pool.files))
        first = SecondMoment(width, total, sum(np.load(path)["sums"] for path in paths), self.size)
        order = np.concatenate([uids[kept] for uids, _, kept in map(self._survivors, self.pool.files)])
        key, state = self._key("rounds", first.sums, order, target, rounds, bound), None
        if parts.is_part(saved, key):
            state = Rounds(**np.load(saved))
            print(f"goes on after round {state.number}")
        due, how = 0.0, {"tiles": self.tiles, "bound": bound, "state": state}
        features = [parts.mapped(path, "features") for path in paths]
        with tqdm(total=rounds, desc="VAS-D", unit="round") as bar:
            try:
                for state in shrink(features, order, first.value(), target, rounds, **how):
                    bar.update(state.number - bar.n)
                    bar.set_postfix_str(f"{len(state.alive):,} left, {state.scored:,} scores")
                    if (began := time.monotonic()) >= due:
                        parts.write_part(saved, key, state._asdict().items())
                        due = began + (_SHARE + 1) * (time.monotonic() - began)
            except Interrupted:
                if state:
                    parts.write_part(saved, key, state._asdict().items())
                raise
        return order[state.alive], {"kept": target, "rounds": rounds, "scored": int(state.scored)}

    def write(self, chosen, summary, facts):
        """The subset, and beside it a JSON of how it came about. Returns what the JSON says."""
        found = f"{len(chosen):,} uids were chosen where {summary['kept']:,} were asked for"
        report = f"{found}, and nothing is written: delete {self.folder} and report this."
        require(len(chosen) == summary["kept"], report)
        repeated = subset.write_subset(self.save_path, chosen)
        clip = self.clip if self.pool.score else None
        found = {"pool": self.size, "files": len(self.pool.files), "clip": clip, "vas": summary}
        found |= {"uids": len(chosen) - repeated, "repeated_uids": repeated, "bad_rows": self.bad}
        found["sha256"] = parts.digest(np.array(subset.read_subset(self.save_path)))
        write_json(Path(self.save_path).with_suffix(".json"), found | facts)
        return found | facts


def _part_of(size, fraction, flag):
    part = int(size * fraction)
    require(part, f"{flag} {fraction} of {size:,} pairs is none.")
    return part

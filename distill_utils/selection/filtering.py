"""Filtering a pool: first by CLIP score, then by VAS with the moment of a prior set, or in rounds with the
pool's own. All processes compute parts of files; the first one cuts and holds the uids.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked
from distill_utils.runs.world import ALONE
from distill_utils.runs.writing import remove_orphans, write_json
from distill_utils.selection.cuts import Cut, count
from distill_utils.selection.parts import Keeper, digest, is_part, key, read_part, remove_parts, write_part
from distill_utils.selection.rounds import Stacked, shrink
from distill_utils.selection.score import SecondMoment, Tiles, described
from distill_utils.selection.subset import contains, read_subset, write_subset


class BadRows:
    """Rows that cannot be scored or chosen: the first is refused, or they are counted and a few named."""

    def __init__(self, drop=False):
        self.drop, self.count, self.named = drop, 0, []

    def add(self, path, rows, fault):
        for row in rows:
            name = f"{path}: row {int(row)} has {fault}"
            if not self.drop:
                _stop(f"{name} (--bad_rows drop leaves such rows out).")
            self.count += 1
            self.named += [name] if len(self.named) < 5 else []

    def add_norms(self, path, found):
        """found: [[row, norm], ...] of embeddings that are not unit vectors."""
        for row, norm in found:
            hint = ": --normalize makes it one" if 0 < float(norm) < np.inf else ""
            self.add(path, [row], f"an embedding of the norm {norm}, not a unit vector{hint}")


class Filter:
    """The work on one pool under one set of settings.

    given: sortable uids that the pool is restricted to. fraction of the pool, or threshold: of the CLIP
    score. drop: bad rows are left out as if they were not in the pool.
    """

    def __init__(
        self, pool, save_path, *, given=None, fraction=None, threshold=None, drop=False, tiles=None,
        world=ALONE,
    ):  # fmt: skip
        self.pool, self.given, self.fraction, self.threshold = pool, given, fraction, threshold
        self.drop, self.tiles, self.world = drop, tiles or Tiles(), world
        self.save_path, self.folder = Path(save_path), Path(f"{save_path}.parts")
        self._broken = {file.name: [] for file in pool.files}  # [[row, norm], ...] of bad embeddings

    @contextmanager
    def alone(self, keep_parts=False):
        """The parts' folder for this command alone; when all went well the parts go away, or are kept."""
        with ExitStack() as stack:
            free = self.world.first and stack.enter_context(locked(self.folder / "lock", wait=False))
            taken = f"{self.folder} is in use: another process writes this subset."
            self._first(lambda: free or _stop(taken))
            remove_orphans(self.folder)
            yield
            if self.world.first and not keep_parts:
                remove_parts(self.folder)

    def _first(self, function):
        """function() of the first process, on all of them; so are its mistakes."""
        return self.world.map([function], self.tiles.device)[0]

    # --- which rows ---

    def _blocks(self, file):
        """(Block, which of its rows are in the pool) a block."""
        broken = np.array([row for row, _ in self._broken[file.name]], np.int64)
        for block in self.pool.rows(file):
            mine = block.good if self.given is None else block.good & contains(self.given, block.uids)
            yield block, mine & ~np.isin(np.arange(block.begin, block.begin + len(mine)), broken)

    def _clip_scores(self):
        for block, mine in chain.from_iterable(map(self._blocks, self.pool.files)):
            yield block.scores[mine], block.uids[mine]

    def _masks(self, file):
        """(which rows of a file are in the pool, which survive the CLIP cut, the uids of those)."""
        columns = [np.empty(0, bool)], [np.empty(0, bool)], [np.empty(0, "S16")]
        for block, mine in self._blocks(file):
            kept = mine & self.cut.keeps(block.scores, block.uids)
            for column, values in zip(columns, (mine, kept, block.uids[kept])):
                column.append(values)
        return tuple(map(np.concatenate, columns))

    def _clip_cut(self):
        """[size of the pool, the Cut, the summary of what it keeps, bad rows]; reads no features."""
        bad, fault = BadRows(self.drop), f"no hexadecimal {self.pool.uid} or no finite {self.pool.score}"

        def scores():
            for file in self.pool.files:
                for block, mine in self._blocks(file):
                    bad.add(file.parquet, block.begin + np.flatnonzero(~block.good), fault)
                    yield block.scores[mine]
                bad.add_norms(file.npz, self._broken[file.name])

        counts = count(scores())
        size, cut, kept = int(counts.numbers.sum()), Cut(), counts
        if self.threshold is not None:
            cut, kept = Cut(self.threshold), counts.at_least(self.threshold)
        elif self.fraction is not None and size:
            kept = counts.highest(_part_of(size, self.fraction, "--fraction"))
            cut = counts.cut(kept, self._clip_scores)
        if not len(kept.values):
            asked = f"--given_uids_path, or of at least --threshold {self.threshold}"
            _stop(f"Of {size:,} pairs of {self.pool.folder} none is in {asked}: nothing is left to score.")
        return [size, cut, kept.summary(), {"dropped": bad.count, "first": bad.named}]

    def _target(self, fraction):
        target, left = _part_of(self.size, fraction, "--fraction_vas"), self.clip["kept"]
        if target > left:
            asked = f"--fraction_vas {fraction} of {self.size:,} pairs is {target:,}"
            _stop(f"{asked}, but the CLIP cut leaves {left:,}: both fractions are of the pool.")
        return target

    # --- parts ---

    def _each_file(self, work, fraction, what):
        """Have work(file, path) write the part of each file unless it is there; once more where the parts
        name bad embeddings, so that the CLIP cut knows of them.
        """
        while True:
            self.size, cut, self.clip, self.bad = self._first(self._clip_cut)
            self.cut = Cut(*cut)
            if fraction:
                self._target(fraction)
            files = self.pool.files
            with tqdm(total=len(files), desc=what, unit="file", disable=not self.world.first) as bar:
                parts = [partial(self._part, file, work, bar) for file in files]
                broken = dict(zip(self._broken, self.world.map(parts, self.tiles.device)))
            if broken == self._broken:
                return
            self._broken = broken

    def _path(self, file):
        return self.folder / f"{file.name}.npz"

    def _part(self, file, work, bar):
        work(file, self._path(file))
        found = [[int(row), f"{norm:.4g}"] for row, norm in read_part(self._path(file), "bad").tolist()]
        BadRows(self.drop).add_norms(file.npz, found)
        bar.update(self.world.size)
        return found

    def _vectors(self, file, bad):
        """(slice of the file, rows as they are, unit vectors, which are good) a block; others go to `bad`."""
        for begin, rows in self.pool.feature_blocks(file):
            vectors, norms, good = self.tiles.units(rows)
            bad += [[begin + row, norms[row]] for row in np.flatnonzero(~good)]
            yield slice(begin, begin + len(rows)), rows, vectors, good

    def _known(self, what, content, *values):
        how = self.pool.features, self.tiles.normalise, described(self.tiles.device)
        return key(what, content, *how, *values)

    # --- the two ways ---

    def by_prior(self, moment, *, fraction=None, threshold=None):
        """(sortable uids of the pairs of highest VAS by S, float64 [D, D]; the summary of their scores), on
        the first process.
        """
        current, of_moment = moment.astype(np.float32), digest(moment)

        def score(file, path):
            """The VAS of every row of a file, which serves any cut."""
            known, bad = self._known("scores", file.content, of_moment), []
            scores = np.empty(file.rows, np.float32)
            if not is_part(path, known):
                for part, _, vectors, good in self._vectors(file, bad):
                    scores[part] = np.where(good, self.tiles.scores(vectors, current), np.nan)
                write_part(path, known, [("scores", scores), ("bad", _pairs(bad))])

        def stream():
            for file in self.pool.files:
                _, kept, uids = self._masks(file)
                yield np.array(read_part(self._path(file), "scores"))[kept], uids

        self._each_file(score, fraction, "VAS")
        if not self.world.first:
            return None, None
        counts = count(scores for scores, _ in stream())
        kept = counts.highest(self._target(fraction)) if fraction else counts.at_least(threshold)
        if not len(kept.values):
            _stop(f"No pair has a VAS of at least --threshold_vas {threshold}.")
        cut = counts.cut(kept, stream)
        return np.concatenate([uids[cut.keeps(scores, uids)] for scores, uids in stream()]), kept.summary()

    def by_rounds(self, fraction, rounds, bound=True):
        """VAS-D: (sortable uids that are left; {"kept", "rounds", "scored"}), on the first process."""
        width, total = self.pool.width, len(self.pool)

        def gather(file, path):
            """A file's survivors, and the sums of f f^T over its rows in the pool."""
            mine, kept, _ = self._masks(file)
            sums, bad = SecondMoment(width, total), []

            def survivors():
                for part, rows, vectors, good in self._vectors(file, bad):
                    sums.add(self.tiles, vectors[mine[part] & good])
                    yield rows[kept[part]]

            def arrays():
                yield "features", ((int(kept.sum()), width), self.pool.dtype, survivors())
                yield from (("sums", sums.sums), ("bad", _pairs(bad)))

            known = self._known("survivors", file.content, mine, kept, total)
            if not is_part(path, known):
                write_part(path, known, arrays())

        self._each_file(gather, fraction, "gathering survivors")
        if not self.world.first:
            return None, None
        paths = [self._path(file) for file in self.pool.files]
        first, target = SecondMoment(width, total), self._target(fraction)
        first.sums, first.rows = sum(np.array(read_part(path, "sums")) for path in paths), self.size
        features = Stacked([read_part(path, "features") for path in paths], width)
        order = np.concatenate([self._masks(file)[2] for file in self.pool.files])
        known = self._known("rounds", None, first.sums, order, target, rounds, bound)
        with tqdm(total=rounds, desc="VAS-D", unit="round") as bar:

            def told(number, again, left):
                bar.update(number - bar.n)
                bar.set_postfix_str(f"{left:,} left, {again:,} scored")

            left, scored = shrink(
                features, order, first.value(), target, rounds, tiles=self.tiles, bound=bound, told=told,
                keeper=Keeper(self.folder / "rounds.state.npz", known),
            )  # fmt: skip
        return order[left], {"kept": target, "rounds": rounds, "scored": scored}

    def write(self, chosen, summary, facts):
        """The subset, and beside it a JSON of how it came about. Returns what the JSON says."""
        if len(chosen) != summary["kept"]:
            found = f"{len(chosen):,} uids were chosen where {summary['kept']:,} were asked for"
            _stop(f"{found}, and nothing is written: delete {self.folder} and report this.")
        repeated = write_subset(self.save_path, chosen)
        facts = {
            "pool": self.size,
            "files": len(self.pool.files),
            "clip": self.clip if self.pool.score else None,
            "vas": summary,
            "uids": len(chosen) - repeated,
            "repeated_uids": repeated,
            "bad_rows": self.bad,
            "sha256": digest(np.array(read_subset(self.save_path))),
        } | facts
        write_json(self.save_path.with_suffix(".json"), facts)
        return facts


def _stop(sentence):
    raise UserError(sentence)


def _pairs(bad):
    return np.array(bad, np.float64).reshape(-1, 2)


def _part_of(size, fraction, flag):
    return int(size * fraction) or _stop(f"{flag} {fraction} of {size:,} pairs is none.")

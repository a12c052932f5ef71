"""A pool of image-text pairs as DataComp stores it, and the file of uids that its resharder takes.

A pool is a folder of <name>.parquet (uid, CLIP score, ...) and <name>.npz (features), a row of one belonging
to the same row of the other. Files are larger than memory likes (a member of 492,000 rows is 756 MB), so
everything is read in blocks of rows. A subset is a one-dimensional .npy of dtype "u8,u8", the first and the
last 16 hex digits of every uid, sorted, each once.
"""

import os
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.writing import write_array

UID = np.dtype("u8,u8")
_DIGITS = 32  # hex digits of a uid
_VALUE = np.full(256, 255, np.uint8)  # of a hex digit's character
_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_VALUE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


# --- uids ---


def parse_uids(column, source):
    """A pyarrow array of hex strings of at most 32 digits as UID [n]; shorter ones have leading zeros."""
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise UserError(f"{source}: the uids are of type {column.type}, not strings of hex digits.")
    strings = column.cast(pyarrow.string())
    if not len(strings):
        return np.empty(0, UID)
    lengths = pyarrow.compute.utf8_length(strings)
    if (
        strings.null_count
        or pyarrow.compute.max(lengths).as_py() > _DIGITS
        or pyarrow.compute.min(lengths).as_py() < 1
    ):
        raise UserError(f"{source}: a uid is missing or has not 1 to {_DIGITS} hex digits.")
    padded = pyarrow.compute.utf8_lpad(strings, _DIGITS, "0")
    data = padded.buffers()[2]
    values = _VALUE[np.frombuffer(data, np.uint8, count=min(len(data), _DIGITS * len(padded)))]
    if len(values) != _DIGITS * len(padded) or values.max() > 15:
        bad = next(text for text in strings.to_pylist() if not set(text) <= set("0123456789abcdefABCDEF"))
        raise UserError(f"{source}: the uid {bad!r} is not a hexadecimal number.")
    values = values.reshape(len(padded), _DIGITS)
    halves = (values[:, 0::2] << 4 | values[:, 1::2]).view(">u8")  # [n, 2]
    uids = np.empty(len(padded), UID)
    uids["f0"], uids["f1"] = halves[:, 0], halves[:, 1]
    return uids


def sortable(uids):
    """UID [n] as 16-byte strings that sort, search and compare as the numbers do, many times faster."""
    halves = np.empty((len(uids), 2), ">u8")
    halves[:, 0], halves[:, 1] = uids["f0"], uids["f1"]
    return halves.view("S16").ravel()


def from_sortable(keys):
    """Sortable uids as UID [n] again."""
    halves, uids = keys.view(">u8").reshape(-1, 2), np.empty(len(keys), UID)
    uids["f0"], uids["f1"] = halves[:, 0], halves[:, 1]
    return uids


def contains(subset, uids):
    """Which of `uids` are in the sorted `subset` (both sortable)."""
    position = np.searchsorted(subset, uids).clip(max=max(len(subset) - 1, 0))
    return subset[position] == uids if len(subset) else np.zeros(len(uids), bool)


# --- the pool ---


class PoolFile(NamedTuple):
    """One pair of files."""

    parquet: Path
    npz: Path
    rows: int


class Pool:
    """The files of a folder, in order of their names; `width` and `dtype` of the features, `uid`, `score` and
    `features` the names they go by.
    """

    def __init__(self, folder, score, features, uid="uid", block=4096):
        """score: None where no one reads it. block: rows read at a time. UserError unless all files have
        these columns and members, and as many rows in the one as in the other."""
        self.folder, self.uid, self.score, self.features, self.block = (
            Path(folder),
            uid,
            score,
            features,
            block,
        )
        names = {path.stem for suffix in ("parquet", "npz") for path in self.folder.glob(f"*.{suffix}")}
        if not names:
            raise UserError(
                f"{folder} holds no metadata (<name>.parquet and <name>.npz): give its folder with --metadata_dir."
            )
        self.files, widths, dtypes = [], {}, set()
        for name in sorted(names):
            parquet, npz = (self.folder / f"{name}.{suffix}" for suffix in ("parquet", "npz"))
            for path in (parquet, npz):
                if not path.exists():
                    raise UserError(
                        f"{path} does not exist, though its other half does: metadata are pairs of .parquet and .npz."
                    )
            rows = self._parquet_rows(parquet)
            with open_member(npz, features) as (_, shape, dtype):
                if shape[0] != rows:
                    raise UserError(
                        f"{npz} has {shape[0]:,} rows of {features} but {parquet.name} has {rows:,}: they are joined by row."
                    )
                widths.setdefault(shape[1], npz)
                dtypes.add(dtype)
            self.files.append(PoolFile(parquet, npz, rows))
        if len(widths) > 1:
            (first, a), (second, b) = list(widths.items())[:2]
            raise UserError(f"{a} has features of width {first} but {b} of width {second}.")
        (self.width,), self.dtype = widths, np.result_type(*dtypes)
        if not len(self):
            raise UserError(f"{folder} holds no rows.")

    def _parquet_rows(self, path):
        with _reading(path):
            schema = pyarrow.parquet.read_schema(path)
            for column in filter(None, (self.uid, self.score)):
                if column not in schema.names:
                    raise UserError(
                        f"{path} has no column {column!r}; it has {', '.join(schema.names)} (--uid_column, --score_column)."
                    )
            return pyarrow.parquet.read_metadata(path).num_rows

    def __len__(self):
        return sum(file.rows for file in self.files)

    def describe(self):
        """What the files are, so that work on other ones is not taken for work on these."""
        stats = [
            [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (file.parquet, file.npz)]
            for file in self.files
        ]
        return [[file.rows, *stat] for file, stat in zip(self.files, stats)]

    def scores(self, file):
        """CLIP scores of a file, float64 [b] a block. UserError for one that is not a finite number."""
        for batch in self._batches(file, [self.score]):
            yield self._finite_scores(batch, file)

    def uids(self, file):
        """UID [b] a block."""
        for batch in self._batches(file, [self.uid]):
            yield parse_uids(batch[self.uid], file.parquet)

    def rows(self, file):
        """(UID [b], scores float64 [b] or None) a block."""
        for batch in self._batches(file, [self.uid, self.score] if self.score else [self.uid]):
            yield (
                parse_uids(batch[self.uid], file.parquet),
                self._finite_scores(batch, file) if self.score else None,
            )

    def _batches(self, file, columns):
        """Record batches of `block` rows, the last one shorter, whatever the row groups of the file are."""
        with _reading(file.parquet), pyarrow.parquet.ParquetFile(file.parquet, memory_map=True) as reader:
            waiting = pyarrow.Table.from_batches([], reader.schema_arrow).select(columns)
            for batch in reader.iter_batches(self.block, columns=columns):
                waiting = pyarrow.concat_tables(
                    [waiting, pyarrow.Table.from_batches([batch]).select(columns)]
                )
                while len(waiting) >= self.block:
                    yield waiting.slice(0, self.block).combine_chunks().to_batches()[0]
                    waiting = waiting.slice(self.block)
            if len(waiting):
                yield waiting.combine_chunks().to_batches()[0]

    def _finite_scores(self, batch, file):
        try:
            scores = batch[self.score].cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
        except pyarrow.ArrowException:
            raise UserError(
                f"{file.parquet}: column {self.score!r} is of type {batch[self.score].type}, not of numbers."
            ) from None
        if not np.isfinite(scores).all():
            raise UserError(
                f"{file.parquet}: a {self.score!r} is {scores[~np.isfinite(scores)][0]}, not a finite number."
            )
        return scores

    def feature_blocks(self, file):
        """Features [b, width] a block, in the file's own dtype."""
        with _reading(file.npz), open_member(file.npz, self.features) as (stream, shape, dtype):
            for begin in range(0, shape[0], self.block):
                block = np.empty((min(self.block, shape[0] - begin), shape[1]), dtype)
                if stream.readinto(memoryview(block).cast("B")) != block.nbytes:
                    raise UserError(
                        f"{file.npz}: {self.features} ends after fewer than its {shape[0]:,} rows."
                    )
                yield block


@contextmanager
def _reading(path):
    """What can go wrong with a file, in a sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (pyarrow.ArrowException, zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


@contextmanager
def open_member(path, member):
    """(stream at the first value, shape (rows, width), dtype) of a two-dimensional array of floats in an
    .npz, nothing of which is loaded.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if member not in names:
            raise UserError(f"{path} has no member {member!r}; it has {', '.join(names)} (--feature_member).")
        with archive.open(f"{member}.npy") as stream:
            shape, dtype = _array_header(stream, f"{path}, {member}")
            yield stream, shape, dtype


def _array_header(stream, source):
    try:
        version = np.lib.format.read_magic(stream)
        shape, fortran, dtype = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(stream)
    except ValueError as error:
        raise UserError(f"{source} is not an array that numpy wrote: {error}.") from None
    if len(shape) != 2 or fortran or dtype.kind != "f":
        raise UserError(f"{source} holds {dtype} {list(shape)}, not rows of floating point numbers.")
    return shape, dtype


# --- subsets ---


def write_subset(path, uids):
    """Write uids (UID [n], or sortable) as a subset, sorted; returns the number of uids that were there more
    than once and are written once.
    """
    whole = np.sort(sortable(uids) if uids.dtype == UID else uids)
    once = whole[np.r_[True, whole[1:] != whole[:-1]]] if len(whole) else whole
    write_array(path, from_sortable(once))
    return len(whole) - len(once)


def read_subset(path):
    """A subset, memory-mapped, UID [n]. UserError for a file that the resharder would fail on or, worse, take
    without a word.
    """
    with _reading(path):
        try:
            subset = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise UserError(f"{path} is not an array that numpy wrote: {error}") from None
    if not isinstance(subset, np.ndarray) or subset.dtype != UID:
        raise UserError(
            f"{path} holds {getattr(subset, 'dtype', type(subset).__name__)}, where a subset has dtype u8,u8 with the fields f0 and f1."
        )
    if subset.ndim != 1 or not len(subset):
        raise UserError(
            f"{path} has the shape {list(subset.shape)}, where a subset has one dimension and at least one uid."
        )
    for begin in range(0, len(subset), 1 << 20):
        part = sortable(subset[begin : begin + (1 << 20) + 1])
        if (part[1:] == part[:-1]).any():
            raise UserError(f"{path} holds a uid twice, which the resharder takes as an upsampling.")
        if (part[1:] < part[:-1]).any():
            raise UserError(f"{path} is not sorted: the resharder would silently pass over most of its uids.")
    return subset


def require_in_pool(path, subset, pool):
    """UserError unless every uid of the subset is in the pool, once."""
    wanted, found = sortable(subset), np.zeros(len(subset), np.uint8)
    for file in pool.files:
        for uids in pool.uids(file):
            keys = sortable(uids)
            position = np.searchsorted(wanted, keys[contains(wanted, keys)])
            found += np.bincount(position, minlength=len(found)).clip(max=2).astype(np.uint8)
            found.clip(max=2, out=found)
    wrong = np.flatnonzero(found != 1)
    if len(wrong):
        name = "{:016x}{:016x}".format(*map(int, subset[wrong[0]].item()))
        fault = "is not" if not found[wrong[0]] else "is more than once"
        raise UserError(
            f"{path}: the uid {name} {fault} in {pool.folder} (and {len(wrong) - 1} others are not there once)."
        )


def allocate(path, size):
    """A file of `size` bytes that are really there on the disk; an existing one of that size stays as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            if size and os.fstat(file.fileno()).st_size != size:
                os.posix_fallocate(file.fileno(), 0, size)
                os.truncate(path, size)
    except OSError as error:
        raise UserError(
            f"{path} cannot be given its {size / 2**30:.2f} GiB: {error.strerror or error}."
        ) from error

"""A pool of image-text pairs as DataComp stores it: <name>.parquet (uid, CLIP score, ...) and <name>.npz
(features), a row of one belonging to the same row of the other, in a folder or anywhere that fsspec reaches.

Files are larger than memory likes (a member of 492,000 rows is 756 MB), so everything is read in blocks.
"""

import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet

from distill_utils.runs.errors import UserError, first_line
from distill_utils.selection.subset import parse_uids

_WIDEST = 1 << 14  # of features: a moment has the square of it


class File(NamedTuple):
    """One pair of files; the features' width and dtype, and what their content is known by."""

    name: str
    parquet: str
    npz: str
    rows: int
    width: int = 0
    dtype: np.dtype | None = None
    content: tuple = ()


class Block(NamedTuple):
    """Rows from `begin` on: sortable uids [b], scores float64 [b] (or zeros), and which rows have both."""

    begin: int
    uids: np.ndarray
    scores: np.ndarray
    good: np.ndarray


class Pool:
    """The files of a folder, in order of their names; `width` and `dtype` of the features, `uid`, `score` and
    `features` the names they go by.
    """

    def __init__(self, folder, score, features, uid="uid", block=4096):
        """folder: a path or URL. score, features: None where no one reads them; without features only the
        .parquet are looked at. block: rows of features read at a time. UserError unless all files have these
        columns and members, and as many rows in the one as in the other."""
        self.folder, self.uid, self.score, self.features = str(folder).rstrip("/"), uid, score, features
        self.block, kinds = block, ("parquet", "npz") if features else ("parquet",)
        with _reading(self.folder):  # or the protocol's package is not there
            self._system, self._root = fsspec.url_to_fs(self.folder)
            paths = {
                path.rstrip("/").rpartition("/")[2] for path in self._system.ls(self._root, detail=False)
            }
        names = sorted({path.rpartition(".")[0] for path in paths if path.rpartition(".")[2] in kinds})
        for path in (f"{name}.{kind}" for name in names for kind in kinds):
            if path not in paths:
                raise UserError(
                    f"{self.folder}/{path} does not exist: metadata are pairs of .parquet and .npz."
                )
        with ThreadPoolExecutor(16) as threads:  # far away every look takes a while
            self.files = list(threads.map(self._look, names))
        if not len(self):
            raise UserError(
                f"{folder} holds no rows: give metadata (<name>.parquet and .npz) with --metadata_dir."
            )
        self.width = self.files[0].width
        for file in self.files:
            if file.width != self.width:
                first = f"{self.files[0].npz} has features of width {self.width}"
                raise UserError(f"{first} but {file.npz} of width {file.width}.")
        dtypes = {file.dtype.newbyteorder("=") for file in self.files if features}
        self.dtype = np.result_type(*dtypes) if features else None

    def _look(self, name):
        parquet, npz = (f"{self.folder}/{name}.{kind}" for kind in ("parquet", "npz"))
        with self._opened(parquet) as file, _reading(parquet):
            reader = pyarrow.parquet.ParquetFile(file)
            columns, rows = reader.schema_arrow.names, reader.metadata.num_rows
        for column in filter(None, (self.uid, self.score)):
            if columns.count(column) != 1:
                found = f"{columns.count(column) or 'no'} column {column!r} (--uid_column, --score_column)"
                raise UserError(f"{parquet} has {found}; it has {', '.join(columns)}.")
        if not self.features:
            return File(name, parquet, npz, rows)
        with self._member(npz) as (_, shape, dtype, content):
            if shape[0] != rows:
                found = f"{shape[0]:,} rows of {self.features} but {name}.parquet has {rows:,}"
                raise UserError(f"{npz} has {found}: they are joined by row.")
            return File(name, parquet, npz, rows, shape[1], dtype, content)

    def __len__(self):
        return sum(file.rows for file in self.files)

    @contextmanager
    def _opened(self, path):
        with _reading(path):
            file = self._system.open(f"{self._root}{path.removeprefix(self.folder)}", "rb")
        with file:
            yield file

    def rows(self, file):
        """A Block at a time. UserError for columns of another type."""
        columns, begin = [self.uid, self.score] if self.score else [self.uid], 0
        with self._opened(file.parquet) as stream, _reading(file.parquet):
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(1 << 16, columns=columns):
                uids, good = parse_uids(batch[self.uid], file.parquet)
                scores = np.zeros(len(uids))
                if self.score:
                    scores = self._numbers(batch[self.score], file.parquet)
                    good &= np.isfinite(scores)
                yield Block(begin, uids, scores, good)
                begin += len(uids)

    def _numbers(self, column, path):
        try:
            return column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)  # nulls are NaN
        except pyarrow.ArrowException:
            raise UserError(
                f"{path}: column {self.score!r} is of type {column.type}, not of numbers."
            ) from None

    def feature_blocks(self, file):
        """(number of the first row, features [b, width]) a block, in the file's own dtype."""
        with self._member(file.npz) as (stream, (rows, width), dtype, _), _reading(file.npz):
            for begin in range(0, rows, self.block):
                n = min(self.block, rows - begin)
                data = stream.read(n * width * dtype.itemsize)
                if len(data) < n * width * dtype.itemsize:
                    raise UserError(f"{file.npz}: {self.features} ends after fewer than its {rows:,} rows.")
                yield begin, np.frombuffer(data, dtype).reshape(n, width)

    @contextmanager
    def _member(self, path):
        """(stream at the first value, shape, dtype, what the content is known by) of the features in an .npz,
        nothing of which is loaded.
        """
        with self._opened(path) as file, _reading(path), zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if self.features not in names:
                raise UserError(
                    f"{path} has no member {self.features!r}; it has {', '.join(names)} (--feature_member)."
                )
            entry = archive.getinfo(f"{self.features}.npy")
            with archive.open(entry) as stream:
                shape, dtype = _array_header(stream, f"{path}, {self.features}", entry.file_size)
                yield stream, shape, dtype, (entry.CRC, *shape, dtype.str)


def blocks_of(array, block):
    """What `Pool.feature_blocks` gives, of an array [N, D]."""
    for begin in range(0, len(array), block):
        yield begin, array[begin : begin + block]


@contextmanager
def _reading(path):
    """What can go wrong with a file, near or far, in a sentence that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except Exception as error:  # every file system has its own
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _array_header(stream, source, size):
    try:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise UserError(f"{source} is not an array that numpy wrote: {error}.") from None
    if len(shape) != 2 or fortran or dtype.kind != "f":
        raise UserError(f"{source} holds {dtype} {list(shape)}, not rows of floating point numbers.")
    if shape[1] > _WIDEST or shape[0] * shape[1] * dtype.itemsize + stream.tell() != size:
        raise UserError(f"{source} claims {list(shape)}, which is not what the file holds or too wide.")
    return shape, dtype

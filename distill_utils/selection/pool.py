"""A pool of image-text pairs as DataComp stores it: <name>.parquet (uid, CLIP score, ...) and <name>.npz
(features), a row of one belonging to the same row of the other, in a folder or anywhere that fsspec reaches.
Embeddings in other files, too.
"""

import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet

from distill_utils.runs.errors import require
from distill_utils.runs.reading import read_array, speaking
from distill_utils.selection.score import TILE
from distill_utils.selection.subset import parse_uids

_WIDEST = 1 << 14  # of features: a moment has the square of it


class File(NamedTuple):
    """One pair of files; the features' shape and dtype, and what their content is known by."""

    name: str
    parquet: str
    npz: str
    rows: int
    width: int = 0
    dtype: np.dtype | None = None
    content: int = 0


class Pool:
    """The files of a folder, in order of their names; `width` of the features, `uid`, `score` and `features`
    the names they go by.
    """

    def __init__(self, folder, score, features, uid="uid", block=4096):
        """folder: a path or URL. score, features: None where no one reads them; without features only the
        .parquet are looked at. block: rows of features read at a time. UserError unless all files have these
        columns and members, and as many rows in the one as in the other."""
        self.folder, self.uid, self.score, self.features = str(folder).rstrip("/"), uid, score, features
        self.block = -(-block // TILE) * TILE  # so that tiles begin where they would in any other division
        kinds = (".parquet", ".npz") if features else (".parquet",)
        with speaking(self.folder):  # or the protocol's package is not there
            self._system, self._root = fsspec.url_to_fs(self.folder)
            paths = map(PurePosixPath, self._system.ls(self._root, detail=False))
        names = sorted({path.stem for path in paths if path.suffix in kinds})
        with ThreadPoolExecutor(16) as threads:  # far away every look takes a while
            self.files = list(threads.map(self._look, names))
        give = "give metadata (<name>.parquet and .npz) with --metadata_dir"
        require(len(self), f"{folder} holds no rows: {give}.")
        self.width = one_width({file.npz: file.width for file in self.files})

    def _look(self, name):
        parquet, npz = (f"{self.folder}/{name}.{kind}" for kind in ("parquet", "npz"))
        with self._opened(parquet) as file:
            reader = pyarrow.parquet.ParquetFile(file)
            columns, rows = reader.schema_arrow.names, reader.metadata.num_rows
        for column in filter(None, (self.uid, self.score)):
            found = f"{columns.count(column) or 'no'} column {column!r} (--uid_column, --score_column)"
            require(columns.count(column) == 1, f"{parquet} has {found}; it has {', '.join(columns)}.")
        if not self.features:
            return File(name, parquet, npz, rows)
        with self._opened(npz) as file, _member(file, self.features) as (_, shape, dtype, content):
            found = f"{shape[0]:,} rows of {self.features} but {name}.parquet has {rows:,}"
            require(shape[0] == rows, f"{npz} has {found}: they are joined by row.")
            return File(name, parquet, npz, rows, shape[1], dtype, content)

    def __len__(self):
        return sum(file.rows for file in self.files)

    @contextmanager
    def _opened(self, path):
        where = f"{self._root}{path.removeprefix(self.folder)}"
        with speaking(path), self._system.open(where, "rb") as file:
            yield file

    def rows(self, file):
        """Of all rows: sortable uids, scores float64 (zeros where there is no column), which have both."""
        columns = [self.uid, self.score] if self.score else [self.uid]
        blocks = [(np.empty(0, "S16"), np.empty(0), np.empty(0, bool))]
        with self._opened(file.parquet) as stream:
            for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(1 << 16, columns=columns):
                uids, good = parse_uids(batch[self.uid], file.parquet)
                scores = np.zeros(len(uids))
                if self.score:  # nulls become NaN
                    scores = batch[self.score].cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
                blocks.append((uids, scores, good & np.isfinite(scores)))
        return tuple(map(np.concatenate, zip(*blocks)))

    def feature_blocks(self, file):
        """(number of the first row, features [b, width]) a block, in the file's own dtype."""
        with self._opened(file.npz) as stream:
            yield from _member_blocks(stream, self.features, self.block)


def one_width(widths):
    """The width of all embeddings, given {path: width}; UserError if there are several."""
    (first, width), *others = widths.items()
    for path, other in others:
        require(other == width, f"{first} has features of width {width} but {path} of width {other}.")
    return width


@contextmanager
def _member(file, name):
    """(stream at the first value, shape, dtype, what the content is known by) of the features in an open
    .npz, nothing of which is loaded.
    """
    with zipfile.ZipFile(file) as archive:
        names = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        if name not in names:
            raise ValueError(f"it has no member {name!r} (--feature_member), but {', '.join(names)}.")
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):  # a later header may itself claim gigabytes
                raise ValueError(f"{name} is not an array of numbers that numpy wrote.")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            held = entry.file_size - stream.tell()
            rows = len(shape) == 2 and shape[1] <= _WIDEST and dtype.kind == "f" and not fortran
            if not rows or math.prod(shape) * dtype.itemsize != held:
                found = f"{name} is {dtype} {list(shape)} in {held:,} bytes"
                raise ValueError(f"{found}, not rows of at most {_WIDEST:,} floating point numbers.")
            yield stream, shape, dtype, entry.CRC


def _member_blocks(file, name, block):
    with _member(file, name) as (stream, (rows, width), dtype, _):
        for begin in range(0, rows, block):
            n = min(block, rows - begin)
            yield begin, np.frombuffer(stream.read(n * width * dtype.itemsize), dtype).reshape(n, width)


def read_matrix(path, member):
    """Floating point numbers [N, D] of a .npy (memory-mapped), the member of an .npz, or what torch.save
    wrote: a tensor, or a dict with "image_features", as DataComp's of ImageNet.
    """
    kind = str(path).rpartition(".")[2]
    if kind == "npy":
        array = read_array(path, "r")
    elif kind == "npz":
        with speaking(path), open(path, "rb") as file:
            array = np.concatenate([rows for _, rows in _member_blocks(file, member, 1 << 16)])
    else:
        from distill_utils.runs.tensors import load_tensors  # here, because it takes torch

        value = load_tensors(path)
        value = value.get("image_features") if isinstance(value, dict) else value
        array = value.detach().numpy() if hasattr(value, "detach") else value
    right = isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind == "f" and array.size
    require(right, f"{path} does not hold floating point numbers [N, D].")
    return array


def read_moment(path, width):
    """S, float64 [width, width]; UserError unless the file holds one."""
    matrix = np.array(read_matrix(path, None), np.float64)
    held = f"{path} holds {list(matrix.shape)}, not a second moment of embeddings of width {width}."
    require(matrix.shape == (width, width), held)
    right = np.isfinite(matrix).all() and np.abs(matrix - matrix.T).max() <= 1e-3 * np.abs(matrix).max()
    require(right, f"{path} is not a second moment: it must be finite and symmetric.")
    return (matrix + matrix.T) / 2

"""Parts of a long job, so that it goes on where it was: a part is a file that is whole or absent, and is
believed only if its checksums are right and it is what this very command would compute.
"""

import hashlib
import json
import time
import zipfile
from pathlib import Path

import numpy as np

from distill_utils.runs.writing import atomic_path

_CODE = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]


def digest(*values):
    """The SHA-256 of arrays and of JSON values."""
    whole = hashlib.sha256()
    for value in values:
        array = isinstance(value, np.ndarray)
        whole.update(np.ascontiguousarray(value).tobytes() if array else json.dumps(value).encode())
    return whole.hexdigest()


def key(*values):
    """What a part depends on, in one word: `values`, and the code that computes it."""
    return digest(*values, _CODE)


def write_part(path, key, arrays):
    """An .npz, uncompressed. arrays: yields (name, array), or (name, (shape, dtype, blocks [b, ...])), so
    that what comes late may depend on what was written.
    """
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.comment = key.encode()
        for name, value in arrays:
            shape, dtype, blocks = value if isinstance(value, tuple) else (value.shape, value.dtype, [value])
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                for block in blocks:
                    stream.write(np.ascontiguousarray(block, dtype).tobytes())


def is_part(path, key):
    """Whether it is there, whole, and made from what `key` says; a word where it is there and is not that."""
    try:
        with zipfile.ZipFile(path) as archive:
            fault = "is of other inputs, settings or code" if archive.comment != key.encode() else None
            fault = "is damaged" if not fault and archive.testzip() else fault
    except FileNotFoundError:
        return False
    except Exception:  # a damaged archive surfaces as any of a dozen types
        fault = "is damaged"
    if fault:
        print(f"{path} {fault}: it is computed again")
    return not fault


def read_part(path, name):
    """An array of a part that is known to be whole, memory-mapped."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        begin = archive.getinfo(f"{name}.npy").header_offset
        file.seek(begin + 26)  # of the local header: two lengths, after which it has 30 bytes and those
        file.seek(begin + 30 + int(np.frombuffer(file.read(4), "<u2").sum(dtype=int)))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape) if np.prod(shape) else np.empty(shape, dtype)


def remove_parts(folder):
    """What write_part left there; what earlier code left stays."""
    for path in (*folder.glob("*.npz"), folder / "lock"):
        path.unlink(missing_ok=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


class Keeper:
    """Saves the rounds of VAS-D in a part, whenever twenty times what saving takes has passed."""

    def __init__(self, path, key):
        self.path, self.key, self._next = path, key, 0.0

    def due(self):
        return time.monotonic() >= self._next

    def save(self, state):
        began = time.monotonic()
        write_part(self.path, self.key, ((name, np.asarray(value)) for name, value in vars(state).items()))
        self._next = time.monotonic() + 20 * (time.monotonic() - began)

    def load(self, state):
        """Whether `state` is now one that was saved."""
        if not is_part(self.path, self.key):
            return False
        for name, value in vars(state).items():
            saved = np.array(read_part(self.path, name))
            setattr(state, name, int(saved) if isinstance(value, int) else saved)
        print(f"goes on after round {state.number}")
        return True

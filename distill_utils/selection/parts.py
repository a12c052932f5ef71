"""Parts of a long job, so that it goes on where it was: a part is a file that is whole or absent, and is
believed only if its checksums are right and it is what this very command would compute.
"""

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

from distill_utils.runs.writing import atomic_path

CODE = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]


def digest(*values):
    """The SHA-256 of arrays and of JSON values."""
    whole = hashlib.sha256()
    for value in values:
        array = isinstance(value, np.ndarray)
        whole.update(np.ascontiguousarray(value).tobytes() if array else json.dumps(value).encode())
    return whole.hexdigest()


def write_part(path, key, arrays):
    """An .npz, uncompressed. arrays: yields (name, array), or (name, (shape, dtype, blocks [b, ...])), so
    that what comes late may depend on what was written. key: what the part depends on, in one word.
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
            other = archive.comment != key.encode()
            fault = "is of other inputs, settings or code" if other else archive.testzip() and "is damaged"
    except FileNotFoundError:
        return False
    except Exception:  # a damaged archive surfaces as any of a dozen types
        fault = "is damaged"
    if fault:
        print(f"{path} {fault}: it is computed again")
    return not fault


def mapped(path, name):
    """An array of a part that is known to be whole, memory-mapped."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        begin = archive.getinfo(f"{name}.npy").header_offset
        file.seek(begin + 26)  # two lengths: of what lies between 30 bytes of a header and the content
        file.seek(begin + 30 + sum(struct.unpack("<2H", file.read(4))))
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(path, dtype, "r", file.tell(), shape) if shape[0] else np.empty(shape, dtype)

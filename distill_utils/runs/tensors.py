"""Tensors in files: the same bytes for the same values, and read without running code or making more than the
file holds.
"""

import os
import sys
import zipfile

import torch

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.outline import LARGEST_PICKLE, require_plain
from distill_utils.runs.reading import speaking
from distill_utils.runs.writing import atomic_path


def save_tensors(path, value):
    """Plain containers, strings, numbers and tensors, to bytes that depend on nothing but their values.

    Through an open file: torch names the archive after a path, which here would carry host and process.
    """
    with atomic_path(path) as partial, open(partial, "wb") as file:
        try:
            torch.save(_unshared(value), file)
        except RuntimeError as error:  # torch's writer reports a full disk so
            raise UserError(f"{path} cannot be written: {first_line(error)}") from error


def _unshared(value):
    """The value with equal strings as one object and each container its own: pickle writes what it has met
    before as a reference, and what a run has computed and what it has read back are not shared alike.
    """
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_unshared(key): _unshared(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_unshared, value))
    return value


def load_tensors(path, mmap=False, verify=True, legacy=False):
    """What torch.save wrote, on the CPU. Only tensors and plain containers are accepted, and no code is run.

    UserError for anything else, for a file that is damaged (verify: by its checksums, which reads it once),
    and for one that asks for more memory than its own size. legacy: also in the format before torch 1.6,
    which has no checksums.
    """
    with speaking(path, " as tensors"):
        if legacy and not zipfile.is_zipfile(path):
            _look_at_legacy(path)
        else:
            _look_at_archive(path, verify)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def require_plain_file(path):
    """UserError unless a file of weights, of either format, is one that `load_tensors` would take; for those
    that a library reads itself.
    """
    with speaking(path, " as tensors"):
        _look_at_archive(path, False) if zipfile.is_zipfile(path) else _look_at_legacy(path)


def _look_at_archive(path, verify):
    """ValueError unless what the file would become is no larger than the file."""
    size = os.path.getsize(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not the archive that torch.save writes (or it is cut off).")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size for entry in entries):
            raise ValueError("its parts are compressed or larger than the file itself.")
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("two of its parts have one name.")
        if verify and (damaged := archive.testzip()):
            raise ValueError(f"it is damaged: the checksum of {damaged} is wrong.")
        root = entries[0].filename.split("/")[0]
        sizes = {entry.filename: entry.file_size for entry in entries}
        if sizes.get(f"{root}/data.pkl", 0) > LARGEST_PICKLE:
            raise ValueError(f"its structure takes more than {LARGEST_PICKLE:,} bytes.")
        require_plain(archive.read(f"{root}/data.pkl"), lambda key: sizes.get(f"{root}/data/{key}", -1))


def _look_at_legacy(path):
    """The same of the older format: five pickles (a magic number, a version, the system, the value, the keys
    of its storages), and the storages.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        data = file.read(LARGEST_PICKLE)
    for _ in range(5):
        end, claimed = require_plain(data, lambda key: None)
        if claimed > size:
            raise ValueError(f"its tensors claim {claimed:,} bytes, and it holds {size:,}.")
        data = data[end:]

"""Files that are either whole or absent: atomic writes, locks, and reads that end in one sentence and never
run code.
"""

import fcntl
import json
import os
import socket
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from distill_utils.runs.errors import UserError, first_line


@contextmanager
def atomic_path(path):
    """A temporary path beside `path`, synced and renamed to it when the block succeeds, removed when it
    fails.

    UserError where the file cannot be written (disk full, no permission); what was there before is then still
    whole.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder):
    """So that the rename, too, outlives a power cut; not every file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_partial(path):
    """Remove what processes that were killed while writing `path` left beside it; only for who alone writes
    it.
    """
    path = Path(path)
    for partial in path.parent.glob(f"{path.name}.*.tmp"):
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path, wait=True):
    """Hold an exclusive lock on the file `path`; yields whether it was got, which is certain if `wait`.

    A POSIX lock: honoured by all processes of all hosts that share the file system, and released by it when
    its process dies.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write_text(path, text):
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path, default=None):
    """The file's value, or `default` if there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}.") from None


def read_yaml(path):
    """The file's keys and values, empty where there is no file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values.")
    return values


def read_indices(path):
    """A .npy of distinct whole numbers, such as a coreset's indices.npy, as a LongTensor [n]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy of pair numbers: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise UserError(f"{path} does not hold the numbers of train pairs, whole numbers in one dimension.")
    if len(np.unique(array)) != len(array):
        raise UserError(f"{path} names a train pair more than once.")
    return torch.from_numpy(array.astype(np.int64))


def write_array(path, array):
    """A .npy, written atomically."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def save_tensors(path, value):
    with atomic_path(path) as partial:
        try:
            torch.save(value, partial)
        except RuntimeError as error:  # torch's writer reports a full disk so
            raise UserError(f"{path} cannot be written: {first_line(error)}") from error


def load_tensors(path, mmap=False, verify=True):
    """What torch.save wrote, on the CPU. Only tensors and plain containers are accepted, and no code is run.

    UserError for anything else, for a file that is damaged (verify: by its checksums, which reads it once),
    and for one that asks
    for more memory than its own size: compressed, or with tensors that claim more elements than are stored.
    """
    try:
        _require_plain_archive(path, verify)
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _require_stored(value, os.path.getsize(path))
        return value
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except Exception as error:  # a broken file surfaces as any of a dozen types
        raise UserError(f"{path} cannot be read as tensors: {first_line(error)}") from error


def _require_plain_archive(path, verify):
    size = os.path.getsize(path)
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not the archive that torch.save writes (or it is cut off).")
    with zipfile.ZipFile(path) as archive:
        if any(
            entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size
            for entry in archive.infolist()
        ):
            raise ValueError("its parts are compressed or larger than the file itself.")
        if verify and (damaged := archive.testzip()):
            raise ValueError(f"it is damaged: the checksum of {damaged} is wrong.")


def _require_stored(value, size):
    """ValueError unless `value` is made of plain containers, and of dense CPU tensors with each element in
    the file.
    """
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if id(item) in seen:  # a list may hold itself
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            if (
                item.layout != torch.strided
                or item.device.type != "cpu"
                or item.is_quantized
                or item.is_nested
            ):
                raise ValueError(f"a tensor of {list(item.shape)} is not a plain one.")
            if item.numel() * item.element_size() > size:
                raise ValueError(f"a tensor claims {list(item.shape)}, more than the file holds.")
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            pending += item
        elif not isinstance(item, (str, int, float, bool, type(None), torch.Size)):
            raise ValueError(f"it holds a {type(item).__name__}.")

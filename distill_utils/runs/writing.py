"""Files that are either whole or absent: written beside their place, synced and renamed."""

import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from distill_utils.runs.errors import UserError


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


def write_text(path, text):
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_array(path, array):
    """A .npy, written atomically."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.save(file, array)

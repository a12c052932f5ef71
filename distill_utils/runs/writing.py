"""Files that are either whole or absent: written beside their place, synced and renamed."""

import json
import os
import re
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import yaml

from distill_utils.runs.errors import UserError

_ABANDONED = 24 * 3600  # seconds without a change, after which another host's unfinished file is nobody's


def partial_path(path):
    """Where `path` is written until it is whole; the name says which process of which host writes it."""
    path = Path(path)
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def writing(path):
    """A block that writes `path`: what the system says against it is a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def atomic_path(path):
    """A temporary path beside `path`, synced and renamed to it when the block succeeds, removed when it
    fails.

    UserError where the file cannot be written (disk full, no permission); what was there before is then still
    whole.
    """
    path = Path(path)
    partial = partial_path(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync_folder(path.parent)
        finally:
            with suppress(OSError):
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


def remove_orphans(folder):
    """Remove what processes that have died left half written in `folder`, files and folders.

    Of this host: what belongs to no living process. Of another: what has not changed for a day.
    """
    for partial in Path(folder).glob("*.tmp"):
        with suppress(OSError):  # gone meanwhile, or another user's
            if _is_orphan(partial):
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _is_orphan(partial):
    match = re.fullmatch(r".+\.(\d+)\.tmp", partial.name)
    if not match:
        return False
    if partial.name.endswith(f".{socket.gethostname()}.{match[1]}.tmp"):
        return not _is_alive(int(match[1]))
    return time.time() - partial.stat().st_mtime > _ABANDONED


def _is_alive(process):
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_text(path, text):
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def append_line(path, text):
    """A line at the end of a log; where the last one was torn by a death, on a line of its own."""
    with writing(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                text = "\n" + text
        file.write((text + "\n").encode())


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1) + "\n")


class _Dumper(yaml.SafeDumper):
    """Says a value that occurs twice twice: `read_yaml` takes no aliases."""

    def ignore_aliases(self, data):
        return True


def write_yaml(path, values):
    write_text(path, yaml.dump(values, Dumper=_Dumper, sort_keys=False))


def write_array(path, array):
    """A .npy, written atomically."""
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.save(file, array)

"""Locks between processes, of one host or of many that share a file system.

They are POSIX locks: honoured on every host, and released by the system when their process dies. They belong
to the process and not to the handle: closing any handle of the file drops them, so that each lock has a file
of its own, which nothing else opens.
"""

import fcntl
import os
import socket
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

from distill_utils.runs.errors import UserError

_POLL = 1.0  # seconds between looks at a lock that another process has
_held = weakref.WeakValueDictionary()  # (process, path) -> Lock


@contextmanager
def locked(path, wait=True):
    """Hold an exclusive lock on the file `path`; yields whether it was got, which is certain if `wait`."""
    with _open(path) as file:
        yield _acquire(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


class Lock:
    """An open lock file; closed, and the lock released, when nothing refers to it any more."""

    def __init__(self, file):
        self.file = file

    def __del__(self):
        self.file.close()


def hold(path, patience=0.0, other="--name"):
    """A Lock on the file `path`, for as long as the caller keeps it; the same for all of one process.

    UserError that names the process that has it, where it still does after `patience` seconds.
    """
    path = Path(os.path.realpath(path))
    held = _held.get((os.getpid(), path))
    if held:
        return held
    file = _open(path)
    until = time.monotonic() + patience
    while not _acquire(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if time.monotonic() >= until:
            file.seek(0)
            owner = " ".join(file.read(400).decode(errors="replace").split()) or "another process"
            file.close()
            raise UserError(
                f"{path.parent} is in use by {owner}: wait until that has ended, or give another {other}."
            )
        time.sleep(min(_POLL, patience))
    file.truncate(0)
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {began}".encode())
    file.flush()
    lock = _held[os.getpid(), path] = Lock(file)
    return lock


def _open(path):
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab+")
    except OSError as error:
        raise UserError(f"{path} cannot be opened to lock it: {error.strerror or error}.") from error


def _acquire(file, how):
    """Whether the lock was got. UserError where the file system has none to give."""
    try:
        fcntl.lockf(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"{file.name} cannot be locked: {error.strerror or error}.") from error
    return True

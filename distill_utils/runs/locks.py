"""Locks between processes, of one host or of many that share a file system."""

import fcntl
from contextlib import contextmanager
from pathlib import Path


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

"""Files from the web: each goes on where it broke off, is verified, and gets its name when it is right."""

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.locks import locked
from distill_utils.runs.reading import read_json
from distill_utils.runs.writing import partial_path, remove_orphans, writing

_BLOCK = 1 << 20  # bytes read at once
_TIMEOUT = 60.0  # seconds without a byte, after which a connection counts as cut
_TRIES = 4  # in a row without a new byte
_PAUSE = 1.0  # seconds before the second try; twice as long before each further one
_PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may be another one the next time


class Known(NamedTuple):
    """What is known of a file before it is there: bytes, a digest (`sha256:...` or `md5:...`, the first
    digits do), the length of the list that its JSON holds. None: unknown.
    """

    size: int | None = None
    digest: str | None = None
    entries: int | None = None


def fetch(url, path, known, announce=print):
    """The file of `url` at `path`; whether it had to be fetched.

    It grows in `<path>.part`, which a later call goes on with. Two processes may ask for the same file: one
    waits for the other. UserError where the server cannot be reached or has no such file, where what it gives
    is not what is `known` (it is then removed), where the disk is full, and where another file is at `path`.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with locked(lock, wait=False) as mine:
        if not mine:
            announce(f"{path}: waiting for another process that fetches it")
    with locked(lock):
        if path.exists():
            wrong = _what_is_wrong(path, known)
            if wrong:
                raise UserError(f"{path} is there, but {wrong}: remove it, and it is fetched anew.")
            announce(f"{path} is there already")
            return False
        announce(f"{path} from {url}")
        _download(url, part, known.size)
        wrong = _what_is_wrong(part, known)
        if wrong:
            part.unlink()
            raise UserError(f"What {url} gave is not the file that was expected: {wrong}; it was removed.")
        with writing(path):
            os.replace(part, path)
        return True


# --- one file over many connections ---


class _Cut(Exception):
    """A connection that ended before the file did; another may succeed."""


def _download(url, part, size):
    """Append to `part` until it is whole."""
    best, failures = _size(part), 0
    while size is None or _size(part) != size:
        try:
            return _continue(url, part, size)
        except _Cut as error:
            # A server that cannot go on begins anew each time: only a new byte counts as progress.
            failures = 1 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures >= _TRIES:
                kept = f"; {_size(part):,} bytes are kept, and the same command goes on from there"
                raise UserError(f"{url} cannot be fetched: {error}{kept if _size(part) else ''}.") from None
            time.sleep(_PAUSE * 2 ** (failures - 1))


def _continue(url, part, size):
    """One connection: what `part` lacks, or the whole file where the server does not give parts of one."""
    had = _size(part)
    if size is not None and had > size:
        had = 0
    headers = {"User-Agent": "lors-data-download"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
            had, total = _span(answer, had)
            if size is not None and total not in (None, size):
                raise UserError(f"{url} has {total:,} bytes, and {size:,} were expected.")
            _append(answer, part, had, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and had:  # nothing after what we have, which is then another file, or whole
            return _beyond_the_end(error, part, had)
        if error.code in _PASSING:
            raise _Cut(f"the server answers {error.code} {error.reason}") from None
        raise UserError(f"{url} cannot be fetched: the server answers {error.code} {error.reason}.") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(_reason(error)) from None


def _reason(error):
    """What ended a connection, in the system's words."""
    cause = getattr(error, "reason", None) or error  # urllib's error carries the system's
    return getattr(cause, "strerror", None) or first_line(cause)


def _span(answer, had):
    """(the position of the answer's first byte, the size of the whole file or None)."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if answer.status == 206 and match and int(match[1]) == had:
        return had, int(match[2]) if match[2] != "*" else None
    if answer.status == 206:
        raise _Cut("the server gave another part than was asked for")
    length = answer.headers.get("Content-Length")
    return 0, int(length) if length else None


def _beyond_the_end(error, part, had):
    match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
    if match and int(match[1]) == had:
        return
    part.unlink()
    raise _Cut("what was there is longer than the file") from None


def _append(answer, part, had, total):
    """Write the answer to `part` from byte `had` on. OSError is the connection's, UserError the disk's."""
    with writing(part):
        file = open(part, "ab" if had else "wb")
    bar = tqdm(
        total=total, initial=had, unit="B", unit_scale=True, desc=part.stem, disable=(total or 0) < 5 << 20
    )
    with file, bar:
        while block := answer.read(_BLOCK):
            with writing(part):
                file.write(block)
                file.flush()
            bar.update(len(block))
        with writing(part):
            os.fsync(file.fileno())
            reached = file.tell()
    if total is not None and reached != total:
        raise _Cut(f"the connection ended after {reached:,} of {total:,} bytes")


def _size(path):
    return path.stat().st_size if path.exists() else 0


# --- is it the file? ---


def _what_is_wrong(path, known):
    """In words, or None."""
    if known.size is not None and _size(path) != known.size:
        return f"it has {_size(path):,} bytes, not {known.size:,}"
    if known.digest:
        kind, _, digits = known.digest.partition(":")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        if not found.startswith(digits):
            return f"its {kind} begins with {found[: min(len(digits), 12)]}, not {digits[:12]}"
    if known.entries is not None:
        try:
            value = read_json(path)
        except UserError as error:
            return f"it cannot be used ({error})"
        if not isinstance(value, list) or len(value) != known.entries:
            return f"it is no JSON list of {known.entries:,} entries"
    return None


# --- archives ---


def unpack(archive, folder):
    """The files of a zip under `folder`, each whole or absent; those of the right size are left as they are,
    so that an interrupted call goes on. UserError for an archive that is broken or that reaches outside.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in members:
                _require_inside(archive, member.filename)
            for parent in {(folder / member.filename).parent for member in members}:
                with writing(parent):
                    parent.mkdir(parents=True, exist_ok=True)
                remove_orphans(parent)
            for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file"):
                _unpack_member(opened, member, folder / member.filename)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise UserError(f"{archive} cannot be unpacked: {first_line(error)}.") from None


def _require_inside(archive, name):
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or "\0" in name:
        raise UserError(f"{archive} holds {name!r}, which reaches outside its folder: it is not unpacked.")


def _unpack_member(opened, member, path):
    if path.is_file() and _size(path) == member.file_size:
        return
    # As writing.atomic_path, which would also wait for the disk, 120,000 times.
    partial = partial_path(path)
    with writing(path):
        try:
            with opened.open(member) as source, open(partial, "wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

"""Files that are either whole or absent: atomic writes, and reads that end in one sentence."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import torch

from distill_utils.errors import UserError


@contextmanager
def atomic_path(path):
    """A temporary path beside `path`, synced and renamed to it when the block succeeds, removed when it fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not a JSON file: {error}.") from None


def save_tensors(path, value):
    with atomic_path(path) as partial:
        torch.save(value, partial)


def load_tensors(path, mmap=False):
    """What torch.save wrote, on the CPU; only tensors and plain containers are accepted, no code is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except Exception as error:  # a broken file surfaces as any of a dozen types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read as tensors: {reason}") from error

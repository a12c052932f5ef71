"""Tensors in files: written atomically, and read without running code or making more than the file holds."""

import os
import zipfile

import torch

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.writing import atomic_path


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

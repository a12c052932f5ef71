"""Uids, and the file of them that DataComp's resharder takes: a one-dimensional .npy of dtype "u8,u8", the
first and the last 16 hex digits of every uid, sorted, each once.
"""

import numpy as np
import pyarrow
import pyarrow.compute

from distill_utils.runs.errors import UserError
from distill_utils.runs.writing import write_array

UID = np.dtype("u8,u8")
_DIGITS = 32  # hex digits of a uid
_VALUE = np.full(256, 255, np.uint8)  # of a hex digit's character
_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_VALUE[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def parse_uids(column, source):
    """A pyarrow array of hex strings of at most 32 digits as (sortable uids [n], which are such); shorter
    ones have leading zeros.
    """
    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        raise UserError(f"{source}: the uids are of type {column.type}, not strings of hex digits.")
    strings = column.cast(pyarrow.string()).fill_null("")
    sizes = pyarrow.compute.binary_length(strings)
    good = np.asarray(pyarrow.compute.string_is_ascii(strings)) & (np.asarray(sizes) > 0)
    good &= np.asarray(sizes) <= _DIGITS
    if not good.all():
        strings = pyarrow.compute.if_else(pyarrow.array(good), strings, "")
    padded = pyarrow.compute.utf8_lpad(strings, _DIGITS, "0")
    begin = padded.offset * _DIGITS
    data = np.frombuffer(padded.buffers()[2] or b"", np.uint8)[begin : begin + _DIGITS * len(padded)]
    values = _VALUE[data].reshape(-1, _DIGITS)
    good &= values.max(axis=1, initial=0) < 16
    return np.ascontiguousarray(values[:, 0::2] << 4 | values[:, 1::2]).view("S16").ravel(), good


def sortable(uids):
    """UID [n] as 16-byte strings that sort, search and compare as the numbers do, many times faster."""
    halves = np.empty((len(uids), 2), ">u8")
    halves[:, 0], halves[:, 1] = uids["f0"], uids["f1"]
    return halves.view("S16").ravel()


def from_sortable(keys):
    """Sortable uids as UID [n] again."""
    halves, uids = keys.view(">u8").reshape(-1, 2), np.empty(len(keys), UID)
    uids["f0"], uids["f1"] = halves[:, 0], halves[:, 1]
    return uids


def contains(subset, uids):
    """Which of `uids` are in the sorted `subset` (both sortable)."""
    position = np.searchsorted(subset, uids).clip(max=max(len(subset) - 1, 0))
    return subset[position] == uids if len(subset) else np.zeros(len(uids), bool)


def write_subset(path, keys):
    """Write sortable uids as a subset, sorted; returns the number of uids that were there more than once and
    are written once.
    """
    whole = np.sort(keys)
    once = whole[np.r_[True, whole[1:] != whole[:-1]]] if len(whole) else whole
    write_array(path, from_sortable(once))
    return len(whole) - len(once)


def read_subset(path):
    """A subset, memory-mapped, UID [n]. UserError for a file that the resharder would fail on or, worse, take
    without a word.
    """
    try:
        subset = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not an array that numpy wrote: {error}") from None
    if not isinstance(subset, np.ndarray) or subset.dtype != UID:
        found = getattr(subset, "dtype", type(subset).__name__)
        raise UserError(f"{path} holds {found}, where a subset has dtype u8,u8 with the fields f0 and f1.")
    if subset.ndim != 1 or not len(subset):
        shape = list(subset.shape)
        raise UserError(
            f"{path} has the shape {shape}, where a subset has one dimension and at least one uid."
        )
    for begin in range(0, len(subset), 1 << 20):
        part = sortable(subset[begin : begin + (1 << 20) + 1])
        if (part[1:] == part[:-1]).any():
            raise UserError(f"{path} holds a uid twice, which the resharder takes as an upsampling.")
        if (part[1:] < part[:-1]).any():
            raise UserError(f"{path} is not sorted: the resharder would silently pass over most of its uids.")
    return subset


def require_in_pool(path, subset, pool):
    """UserError unless every uid of the subset is in the pool, once."""
    wanted, found = sortable(subset), np.zeros(len(subset), np.uint8)
    for file in pool.files:
        for block in pool.rows(file):
            place = np.searchsorted(wanted, block.uids[contains(wanted, block.uids) & block.good])
            found[found < 2] += (
                np.bincount(place, minlength=len(found)).clip(max=2).astype(np.uint8)[found < 2]
            )
    wrong = np.flatnonzero(found != 1)
    if len(wrong):
        name = "{:016x}{:016x}".format(*map(int, subset[wrong[0]].item()))
        fault = "is more than once" if found[wrong[0]] else "is not"
        others = f"{len(wrong) - 1} others are not there once"
        raise UserError(f"{path}: the uid {name} {fault} in {pool.folder} (and {others}).")

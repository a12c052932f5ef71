"""Uids, and the file of them that DataComp's resharder takes: a one-dimensional .npy of dtype "u8,u8", the
first and the last 16 hex digits of every uid, sorted, each once.
"""

import numpy as np
import pyarrow
import pyarrow.compute

from distill_utils.runs.errors import UserError, require
from distill_utils.runs.reading import speaking
from distill_utils.runs.writing import write_array

UID = np.dtype("u8,u8")


def parse_uids(column, source):
    """A pyarrow array of hex strings of at most 32 digits as (sortable uids [n], which are such); shorter
    ones have leading zeros.
    """
    try:
        good = pyarrow.compute.match_substring_regex(column, "^[0-9A-Fa-f]{1,32}$").fill_null(False)
        digits = pyarrow.compute.utf8_lpad(pyarrow.compute.if_else(good, column, ""), 32, "0")
    except pyarrow.ArrowException:
        raise UserError(f"{source}: the uids are of type {column.type}, not strings of hex digits.") from None
    return np.frombuffer(bytes.fromhex("".join(digits.to_pylist())), "S16"), np.array(good, bool)


def sortable(uids):
    """UID [n] as 16-byte strings that sort, search and compare as the numbers do, many times faster."""
    return np.ascontiguousarray(uids).view("u8").astype(">u8").view("S16")


def from_sortable(keys):
    """Sortable uids as UID [n] again."""
    return keys.view(">u8").astype("u8").view(UID)


def contains(subset, uids):
    """Which of `uids` are in the sorted `subset`, of at least one (both sortable)."""
    return subset[np.searchsorted(subset, uids).clip(max=len(subset) - 1)] == uids


def write_subset(path, keys):
    """Write sortable uids as a subset, each once; returns how many there were too many."""
    once = np.unique(keys)
    write_array(path, from_sortable(once))
    return len(keys) - len(once)


def read_subset(path):
    """A subset, memory-mapped, UID [n]. UserError for a file that the resharder would fail on or, worse, take
    without a word.
    """
    with speaking(path):
        subset = np.lib.format.open_memmap(path, mode="r")
    found = f"{path} holds {subset.dtype} {list(subset.shape)}"
    wanted = "a subset has dtype u8,u8 with the fields f0 and f1, one dimension and at least one uid"
    require(subset.dtype == UID and subset.ndim == 1 and len(subset), f"{found}, where {wanted}.")
    for begin in range(0, len(subset), 1 << 20):
        part = sortable(subset[begin : begin + (1 << 20) + 1])
        twice, unsorted = part[1:] == part[:-1], part[1:] < part[:-1]
        require(not twice.any(), f"{path} holds a uid twice, which the resharder takes as an upsampling.")
        silent = "the resharder would silently pass over most of its uids"
        require(not unsorted.any(), f"{path} is not sorted: {silent}.")
    return subset


def require_in_pool(path, subset, pool):
    """UserError unless every uid of the subset is in the pool, once."""
    wanted, found = sortable(subset), np.zeros(len(subset), np.uint8)
    for file in pool.files:
        uids, _, good = pool.rows(file)
        place, times = np.unique(
            np.searchsorted(wanted, uids[good & contains(wanted, uids)]), return_counts=True
        )
        found[place] = np.minimum(found[place] + times, 2)
    wrong = np.flatnonzero(found != 1)
    if len(wrong):
        name, fault = wanted[wrong[:1]].tobytes().hex(), "is more than once" if found[wrong[0]] else "is not"
        others = f"{len(wrong) - 1} others are not there once"
        raise UserError(f"{path}: the uid {name} {fault} in {pool.folder} (and {others}).")

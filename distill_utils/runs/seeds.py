"""Random numbers: one seed for each purpose, so that none depends on how many the others draw."""

import hashlib

import torch


def derive_seed(seed, *parts):
    """A seed for one purpose, independent of how many random numbers the others draw."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def generator(seed, *parts):
    """A CPU generator for one purpose of the run."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))

"""The synthetic set: images, text embeddings and their similarity S, in memory and on disk."""

from distill_utils.synthetic.set import SyntheticSet

__all__ = ["SyntheticSet"]

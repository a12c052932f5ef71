"""Image and text encoders, and the two-tower student that joins them."""

from networks.two_tower import TwoTower, build_encoder, build_model, join

__all__ = ["TwoTower", "build_encoder", "build_model", "join"]

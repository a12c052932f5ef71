"""Image and text encoders, and the two-tower student that joins them."""

from networks.two_tower import TwoTower, build_model

__all__ = ["TwoTower", "build_model"]

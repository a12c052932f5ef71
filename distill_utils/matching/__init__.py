"""Trajectory matching: the gradient of an inner loop, exact or truncated, and its slow twins."""

from distill_utils.matching.gradient import Matcher, MatchingLoss, matching_step

__all__ = ["Matcher", "MatchingLoss", "matching_step"]

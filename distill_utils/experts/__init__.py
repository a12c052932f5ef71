"""Experts, models trained on all real pairs, and the trajectories of their weights."""

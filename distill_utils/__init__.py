"""Multimodal dataset distillation: expert trajectories, their matching, similarity mining, evaluation."""

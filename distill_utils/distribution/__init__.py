"""Objectives without an inner loop: features of the synthetic set are drawn to those of real pairs."""

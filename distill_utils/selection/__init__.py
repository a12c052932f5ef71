"""Choosing real pairs: coresets of a data set, and VAS on pools of any size."""

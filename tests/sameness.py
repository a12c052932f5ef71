"""Runs and experts that must be the same, to the byte, but for the times."""

import torch
from commands import read_log

from distill_utils.runs.tensors import load_tensors
from distill_utils.synthetic.set import SyntheticSet


def lines_without_times(directory):
    return [
        {key: value for key, value in line.items() if key not in ("time", "seconds", "memory_mb")}
        for line in read_log(directory)
    ]


def assert_same_run(one, other):
    """Sets, log and results to the byte, times apart."""
    names = sorted(path.name for path in one.glob("distilled_*.pt"))
    assert names == sorted(path.name for path in other.glob("distilled_*.pt")) and names
    for name in names:
        a, b = (SyntheticSet.load(directory / name) for directory in (one, other))
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters())) and a.meta == b.meta
    assert lines_without_times(one) == lines_without_times(other)
    assert (one / "results.json").read_bytes() == (other / "results.json").read_bytes()


def assert_same_experts(one, other):
    names = sorted(path.name for path in one.iterdir() if path.suffix == ".pt")
    assert names == sorted(path.name for path in other.iterdir() if path.suffix == ".pt") and names
    for name in names:
        first, second = (load_tensors(folder / name) for folder in (one, other))
        if name.startswith("forgetting"):
            assert all(torch.equal(first[key], second[key]) for key in ("events", "learned"))
        else:
            assert torch.equal(
                *(
                    torch.cat([value.flatten() for shot in experts[0] for value in shot])
                    for experts in (first, second)
                )
            )

"""Runs and experts that must be the same, to the byte of their files, but for the times.

Not state.pt: it holds the random id under which wandb knows the run.
"""

from commands import read_log


def lines_without_times(directory):
    return [
        {key: value for key, value in line.items() if key not in ("time", "seconds", "memory_mb")}
        for line in read_log(directory)
    ]


def assert_same_files(one, other, pattern):
    names = sorted(path.name for path in one.glob(pattern))
    assert names == sorted(path.name for path in other.glob(pattern)) and names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def assert_same_run(one, other):
    """Sets, log and results, times in the log apart."""
    assert_same_files(one, other, "distilled_*.pt")
    assert_same_files(one, other, "results.json")
    assert lines_without_times(one) == lines_without_times(other)


def assert_same_experts(one, other):
    """Both towers of every expert, and what it forgot."""
    assert_same_files(one, other, "*.pt")

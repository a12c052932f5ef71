"""A disk that is full: the step is lost, nothing else."""

from commands import long_run
from sameness import assert_same_run


def test_a_full_disk_costs_nothing_but_the_step(forker, home):
    directory = home / "logged_files/toy/full_disk"
    argv = long_run(home, "full_disk")
    assert forker.run("distill_lors", [*argv, "--Iteration", "10"], home) == 0
    before = (directory / "state.pt").read_bytes()
    status = forker.run("distill_lors", argv, home, limit=len(before) // 2)
    assert status == 2
    (sentence,) = [
        line
        for line in (home / "output.txt").read_text().splitlines()
        if line.startswith("error: ") and "full_disk" in line
    ]
    assert "cannot be written" in sentence
    assert (directory / "state.pt").read_bytes() == before and not list(directory.glob("*.tmp"))
    assert forker.run("distill_lors", argv, home) == 0
    assert_same_run(home / "logged_files/toy/undisturbed", directory)

"""Runs and experts that are killed, again and again: they come out as if nothing had happened."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from commands import EXPERTS, EXPERTS_FOLDER, long_run, toy
from sameness import assert_same_experts, assert_same_run, lines_without_times


def changes(path, count, pid):
    """Waits until the file has changed `count` times, or the process is gone."""
    was, seen = None, 0
    while seen < count and Path(f"/proc/{pid}/exe").exists():  # not that of a zombie
        now = path.stat().st_mtime_ns if path.exists() else None
        seen, was = seen + (now != was), now
        time.sleep(0.001)


def kill_until_done(forker, program, argv, cwd, log, kills, rng):
    """Starts the command again and again, killing it at the `kills` in turn; returns how many hit.

    A kill is (a function, the number of the call to die in), or None: some time after a random number of
    lines of the log.
    """
    hits = 0
    for kill in kills:
        if kill:
            status = forker.run(program, argv, cwd, kill=kill)
        else:
            pid = forker.start(program, argv, cwd)
            changes(log, rng.randint(0, 3), pid)
            time.sleep(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            status = forker.wait(pid)
        assert status in (0, -9), (cwd / "output.txt").read_text()[-2000:]
        hits += status == -9
    assert forker.run(program, argv, cwd) == 0, (cwd / "output.txt").read_text()[-2000:]
    return hits


def moments(rng, timed, names):
    """`timed` random times, and one death at a random call of each of the functions, in random order."""
    kills = [None] * timed + [(name, rng.randint(1, 4)) for name in names]
    rng.shuffle(kills)
    return kills


SAVING = ["os.replace", "os.fsync", "torch.save", "os.replace", "torch.save", "os.fsync"]


def killed_distillation(forker, home, name, seed):
    rng = random.Random(seed)
    directory = home / "logged_files/toy" / name
    hits = kill_until_done(
        forker,
        "distill_lors",
        long_run(home, name),
        home,
        directory / "log.jsonl",
        moments(rng, 6, SAVING),
        rng,
    )
    assert_same_run(home / "logged_files/toy/undisturbed", directory)
    return hits


def killed_experts(forker, home, folder, seed):
    rng = random.Random(seed)
    argv, log = (
        [*toy(home), *EXPERTS, "--buffer_path", f"{folder}/buffers"],
        folder / "logged_files/toy/buffer/log.jsonl",
    )
    hits = kill_until_done(forker, "buffer", argv, folder, log, moments(rng, 6, SAVING), rng)
    assert_same_experts(home / "buffers" / EXPERTS_FOLDER, folder / "buffers" / EXPERTS_FOLDER)
    assert lines_without_times(home / "logged_files/toy/buffer") == lines_without_times(
        folder / "logged_files/toy/buffer"
    )
    assert not list((folder / "buffers" / EXPERTS_FOLDER).glob("partial_*"))
    return hits


def test_distillation_killed_at_twelve_moments_gives_the_same_bytes(forker, home):
    assert killed_distillation(forker, home, "killed", 0) == 12


def test_experts_killed_at_twelve_moments_give_the_same_bytes(forker, home, tmp_path):
    assert killed_experts(forker, home, tmp_path, 0) >= 10


@pytest.mark.soak
def test_soak(forker, home, tmp_path):
    """Many more deaths than the suite has time for: `pytest -m soak -s`."""
    hits = [0, 0]
    for seed in range(1, 11):
        hits[0] += killed_distillation(forker, home, f"soak_{seed}", seed)
        (tmp_path / str(seed)).mkdir()
        hits[1] += killed_experts(forker, home, tmp_path / str(seed), seed)
    print(f"10 distillations, {hits[0]} times killed; 10 trainings of 2 experts, {hits[1]} times killed;")
    print("all to the byte as undisturbed")

"""Runs that are asked to end: the state is saved at once, and they go on later."""

import os
import signal
import time

import pytest
from commands import EXPERTS, EXPERTS_FOLDER, long_run, read_log, toy
from sameness import assert_same_experts, assert_same_run

from distill_utils.runs.tensors import load_tensors


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_saves_the_state_at_once(forker, home, number, name):
    directory = home / "logged_files/toy" / name
    argv = long_run(home, name, "--save_it", "1000", "--eval_it", "1000")
    pid = forker.start("distill_lors", argv, home)
    while not (directory / "log.jsonl").exists() or len(read_log(directory)) < 3:
        time.sleep(0.01)
    os.kill(pid, number)
    began = time.perf_counter()
    assert forker.wait(pid) == 128 + number and time.perf_counter() - began < 30
    assert f"interrupted by {name}" in (home / "output.txt").read_text()
    state = load_tensors(directory / "state.pt")
    logged = len(read_log(directory)) - 1
    assert 2 <= logged <= state["step"] <= logged + 1
    assert forker.run("distill_lors", argv, home) == 0
    assert (
        forker.run(
            "distill_lors", long_run(home, f"{name}_none", "--save_it", "1000", "--eval_it", "1000"), home
        )
        == 0
    )
    assert_same_run(home / f"logged_files/toy/{name}_none", directory)


def test_a_signal_ends_an_expert_that_goes_on_later(forker, home, tmp_path):
    argv = [*toy(home), *EXPERTS, "--buffer_path", f"{tmp_path}/buffers"]
    pid = forker.start("buffer", argv, tmp_path)
    folder = tmp_path / "buffers" / EXPERTS_FOLDER
    while not list(folder.glob("partial_0/epoch_1.pt")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert forker.wait(pid) == 128 + signal.SIGTERM
    assert forker.run("buffer", argv, tmp_path) == 0
    assert_same_experts(home / "buffers" / EXPERTS_FOLDER, folder)

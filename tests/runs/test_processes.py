"""Several processes: they share the work, give what one gives, and outlive the death of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from commands import EXPERTS, EXPERTS_FOLDER, ROOT, long_run, read_log, toy
from sameness import assert_same_experts, assert_same_run

from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.synthetic.set import SyntheticSet
from networks.weights import Weights


def test_three_processes_share_the_experts_and_a_dead_one_is_replaced(forker, home, tmp_path):
    argv = [*toy(home), *EXPERTS, "--num_experts", "4", "--buffer_path", f"{tmp_path}/buffers"]
    pids = [forker.start("buffer", argv, tmp_path) for _ in range(3)]
    folder = tmp_path / "buffers" / EXPERTS_FOLDER
    while not list(folder.glob("partial_*/epoch_1.pt")):
        time.sleep(0.02)
    os.kill(pids[0], signal.SIGKILL)
    assert forker.wait(pids[0]) == -9
    pids[0] = forker.start("buffer", argv, tmp_path)
    assert [forker.wait(pid) for pid in pids] == [0, 0, 0], (tmp_path / "output.txt").read_text()[-2000:]
    experts = ExpertTrajectories(folder)
    assert len(experts) == 4
    ends = [experts.pair(n, Weights(0, 0), 3)[1].img for n in range(4)]
    assert len({tuple(end[:50].tolist()) for end in ends}) == 4
    output = (tmp_path / "output.txt").read_text()
    for n in range(
        4
    ):  # no epoch of an expert was trained twice, but for the one that the dead process was in
        assert sum(f"expert {n + 1}/4, epoch {epoch}/3" in output for epoch in (1, 2, 3)) == 3
    epochs = [(line["expert"], line["epoch"]) for line in read_log(tmp_path / "logged_files/toy/buffer")]
    assert epochs == [(n, epoch) for n in range(4) for epoch in (1, 2, 3)]


def torchrun(program, argv, cwd, processes=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        str(port),
    ]
    command += ["-m", program] if program.startswith("distill_utils") else [str(ROOT / f"{program}.py")]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return subprocess.Popen(
        [*command, *map(str, argv)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_ranks_distil_as_one_even_when_one_is_killed(forker, home):
    argv = long_run(home, "two_ranks", "--num_eval", "2")
    first = torchrun("distill_lors", argv, home)
    directory = home / "logged_files/toy/two_ranks"
    while not (directory / "log.jsonl").exists() or len(read_log(directory)) < 3:
        assert first.poll() is None, first.communicate()[0][-3000:]
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    began = time.perf_counter()
    output = first.communicate(timeout=60)[0]
    assert first.returncode != 0 and time.perf_counter() - began < 60
    assert "Signal 9" in output or "SIGKILL" in output, output[-3000:]
    assert "another process of this job has died" in output.lower() or "interrupted by SIGTERM" in output, (
        output[-3000:]
    )
    assert forker.together("distill_lors", argv, home) == [0, 0], (home / "output.txt").read_text()[-3000:]
    assert forker.run("distill_lors", long_run(home, "one_rank", "--num_eval", "2"), home) == 0
    alone = home / "logged_files/toy/one_rank"
    assert_same_run(alone, directory)  # to the byte: parts are added up in one order, whoever made them


@pytest.mark.parametrize("program", ["distill_utils.evaluate", "buffer"])
def test_two_ranks_do_as_one(program, forker, home, tmp_path):
    if program == "buffer":
        argv = [*toy(home), *EXPERTS, "--buffer_path"]
        assert forker.together(program, [*argv, f"{tmp_path}/buffers"], tmp_path) == [0, 0], (
            tmp_path / "output.txt"
        ).read_text()[-3000:]
        assert_same_experts(home / "buffers" / EXPERTS_FOLDER, tmp_path / "buffers" / EXPERTS_FOLDER)
        return
    results = []
    for name in ("alone", "divided"):
        path = tmp_path / name
        path.mkdir()
        SyntheticSet.load(home / "logged_files/toy/undisturbed/distilled_30.pt").save(
            path / "distilled_30.pt"
        )
        argv = [
            *toy(home),
            "--ckpt_path",
            path,
            "--num_eval",
            "3",
            "--epoch_eval_train",
            "2",
            "--baselines",
            "--buffer_path",
            f"{home}/buffers",
        ]
        if name == "alone":
            assert forker.run(program, argv, tmp_path) == 0, (tmp_path / "output.txt").read_text()[-2000:]
            told = (tmp_path / "output.txt").read_text().count("epoch chosen on val")
        else:
            assert forker.together(program, argv, tmp_path) == [0, 0], (tmp_path / "output.txt").read_text()[
                -2000:
            ]
            assert (
                (tmp_path / "output.txt").read_text().count("epoch chosen on val") == 2 * told == 2
            )  # the first rank alone speaks
        results.append(json.loads((path / "results.json").read_text()))
    assert results[0] == results[1]

"""Several processes distil what one does, to the byte; hangs end in a sentence, ranks with their launcher."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from builders import tiny_model
from commands import DISTILL, ROOT, read_log, toy
from sameness import lines_without_times

from distill_utils.matching.gradient import Matcher
from distill_utils.runs.world import World
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.losses import LOSSES
from networks.weights import Weights, flatten, snapshot

STEPS = 5  # inner; more than any number of processes here owns


# --- the collectives of a Matcher, in threads ---


class ThreadWorld(World):
    """A process that is a thread: broadcasts overwrite the others' tensors in place, as gloo and NCCL do."""

    def __init__(self, rank, size, shared):
        self.rank, self.size = rank, size
        self._shared, self.broadcasts = shared, []

    def broadcast(self, tensor, part):
        if self.size == 1:
            return
        self.broadcasts.append((part, tensor.shape))
        if self.owns(part):
            self._shared["tensor"] = tensor
        self._shared["barrier"].wait(30)
        if not self.owns(part):
            tensor.copy_(self._shared["tensor"])
        self._shared["barrier"].wait(30)


def outer_steps(model, world, gradient, second_order, found):
    """Five outer steps of one of the processes; what each leaves, in `found`."""
    draws = torch.Generator().manual_seed(1)
    synthetic = SyntheticSet(
        torch.randn(7, 3, 9, 8, generator=draws),
        torch.randn(7, 6, generator=draws),
        build_similarity("lowrank", 7, rank=2, generator=draws),
        0.3,
        0.2,
    )
    start = Weights(*map(flatten, snapshot(model)))
    target = Weights(*(vector + 0.1 * torch.randn(len(vector), generator=draws) for vector in start))
    matcher = Matcher(
        model, LOSSES["WBCE"], gradient=gradient, second_order=second_order, temperature=0.5, world=world
    )
    for _ in range(5):
        minibatches = [torch.randperm(7, generator=draws)[:4] for _ in range(STEPS)]
        matcher(synthetic, start, target, minibatches, seed=3)
        found.append([parameter.grad.clone() for parameter in synthetic.parameters()])
        found[-1] += [torch.tensor(matcher.repeats)] + ([] if matcher.length is None else [matcher.length])


@pytest.fixture
def lockstep(monkeypatch):
    """run(size, gradient, second_order): what each of `size` threads found, and its broadcasts."""
    monkeypatch.setattr("distill_utils.matching.student.replayed", lambda seed, device: threading.Lock())

    def run(size, gradient, second_order):
        model = tiny_model(dtype=torch.float32).eval()  # no dropout: threads share torch's generator
        shared = {"barrier": threading.Barrier(size)}
        worlds = [ThreadWorld(rank, size, shared) for rank in range(size)]
        found = [[] for _ in worlds]
        threads = [
            threading.Thread(target=outer_steps, args=(model, world, gradient, second_order, steps))
            for world, steps in zip(worlds, found)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, [world.broadcasts for world in worlds]

    return run


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("gradient", ["truncated", "full"])
@pytest.mark.parametrize("second_order", ["finite", "reverse"])  # forward mode is not for threads
def test_every_process_has_the_gradients_of_one_alone(lockstep, size, gradient, second_order):
    (alone,), _ = lockstep(1, gradient, second_order)
    together, broadcasts = lockstep(size, gradient, second_order)
    assert all(calls == broadcasts[0] for calls in broadcasts)
    for steps in together:
        assert len(steps) == len(alone) == 5
        for one, other in zip(alone, steps):
            assert len(one) == len(other) and all(map(torch.equal, one, other))


# --- whole programs ---


def distill(home, name, *more):
    flags = (
        f"--syn_steps {STEPS} --Iteration 4 --eval_it 4 --num_eval 1 --epoch_eval_train 2 --save_it 1".split()
    )
    return [*toy(home), *DISTILL, *flags, "--buffer_path", f"{home}/buffers", "--name", name, *more]


def tensors(directory):
    """The set and the state of a run, as bytes."""
    synthetic = SyntheticSet.load(directory / "distilled_4.pt")
    state = torch.load(directory / "state.pt", weights_only=True)
    values = [*synthetic.parameters(), *state["momentum"]] + [state["length"]] * (state["length"] is not None)
    return [value.detach().numpy().tobytes() for value in values]


@pytest.mark.parametrize("gradient", ["truncated", "full"])
@pytest.mark.parametrize("second_order", ["finite", "forward"])
def test_two_and_three_processes_distil_what_one_does(forker, home, gradient, second_order):
    kind = ["--gradient", gradient, "--second_order", second_order]
    name, output = f"{gradient}_{second_order}", home / "output.txt"
    assert forker.run("distill_lors", distill(home, f"{name}_1", *kind), home) == 0, output.read_text()[
        -2000:
    ]
    alone = home / f"logged_files/toy/{name}_1"
    for processes in (2, 3):
        argv = distill(home, f"{name}_{processes}", *kind)
        statuses = forker.together("distill_lors", argv, home, processes)
        assert statuses == [0] * processes, output.read_text()[-2000:]
        directory = home / f"logged_files/toy/{name}_{processes}"
        assert tensors(directory) == tensors(alone)
        assert (directory / "results.json").read_bytes() == (alone / "results.json").read_bytes()


def test_two_processes_skip_and_restore_what_one_does(forker, home):
    """Gradients that are not finite: what is then done is for all to do."""
    wild = "--lr_img 1e30 --max_bad_steps 2 --Iteration 9 --eval_it 9".split()
    logs = []
    for processes in (1, 2):
        name = f"wild_{processes}"
        statuses = forker.together("distill_lors", distill(home, name, *wild), home, processes)
        assert len(set(statuses)) == 1
        logs.append(lines_without_times(home / f"logged_files/toy/{name}"))
    assert any("Guard/restored_step" in line for line in logs[0])
    assert json.dumps(logs[0]) == json.dumps(logs[1])  # NaN is like NaN


# --- what ends a job ---


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


HANGS = """
import sys, time, torch
from datetime import timedelta
from distill_utils.runs import group, processes
from distill_utils.runs.signals import run_program

def main(argv):
    group._LIMIT = timedelta(seconds=2)
    world = processes.join(torch.device("cpu"))
    if not world.first:
        time.sleep(float(argv[0]))
    WORK

sys.exit(run_program(main))
"""


def two_ranks(script, work, *argv):
    port, processes = free_port(), []
    for rank in range(2):
        environment = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", script.replace("WORK", work), *argv],
                env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def test_a_process_that_does_not_come_ends_the_others_in_a_sentence():
    first, second = two_ranks(HANGS, "world.broadcast(torch.zeros(3), 1)", "120")
    error = first.communicate(timeout=100)[1]
    second.kill()
    second.communicate()
    assert first.returncode == 2
    assert "error: Another process of this job has died, cannot be reached or does not answer" in error


def test_a_long_part_of_the_work_is_waited_for():
    """A student may take longer than the limit for what all do at once."""
    work = "assert world.map([lambda: 1, lambda: 2], 'cpu') == [1, 2]; world.barrier()"
    for process in two_ranks(HANGS, work, "5"):
        error = process.communicate(timeout=100)[1]
        assert process.returncode == 0, error


def alive(pid):
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ranks_end_with_their_launcher(home):
    endless = "--Iteration 1000000 --eval_it 1000000 --save_it 1000000".split()
    still = "--lr_img 0 --lr_txt 0 --lr_sim 0 --lr_lr 0".split()
    argv = distill(home, "orphaned", *endless, *still)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", free_port(), str(ROOT / "distill_lors.py"), *argv]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    launcher = subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    directory = home / "logged_files/toy/orphaned"
    while not (directory / "log.jsonl").exists() or len(read_log(directory)) < 3:
        assert launcher.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 45
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in children if alive(pid)]
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
    assert not left
    state = torch.load(directory / "state.pt", weights_only=True)
    assert state["step"] >= json.loads((directory / "log.jsonl").read_text().splitlines()[-1])["step"] > 0

"""Runs that are killed, divided, starved of disk, poisoned and lied to: nothing is lost, nothing comes out
different.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import DISTILL, EXPERTS, ROOT, Forker, read_log, toy

import buffer
import distill_lors
from distill_utils import coreset
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.runs.errors import UserError
from distill_utils.runs.files import load_tensors, save_tensors
from distill_utils.synthetic.set import SyntheticSet
from networks import build_model

EXPERTS_FOLDER = "toy/test_nfnet_toy_bert/InfoNCE"
LONG = [
    *DISTILL,
    *"--Iteration 30 --eval_it 10 --save_it 1 --num_eval 1 --epoch_eval_train 2".split(),
    *"--lr_img 0.1 --lr_txt 0.1 --lr_sim 0.1 --lr_lr 0.00001".split(),
]


@pytest.fixture(scope="module")
def forker():
    forker = Forker()
    yield forker
    forker.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory, forker):
    """A folder with toy data, two experts, and a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("home")
    assert forker.run("buffer", [*toy(folder), *EXPERTS, "--buffer_path", f"{folder}/buffers"], folder) == 0
    assert forker.run("distill_lors", distill(folder, "undisturbed"), folder) == 0
    return folder


def distill(folder, name, *more):
    return [*toy(folder), *LONG, "--buffer_path", f"{folder}/buffers", "--name", name, *more]


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
        distill(home, name),
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
    print(
        f"10 distillations, {hits[0]} times killed; 10 trainings of 2 experts, {hits[1]} times killed; all to the byte as undisturbed"
    )


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
    ends = [experts.pair(n, 0, 3)[1].img for n in range(4)]
    assert len({tuple(end[:50].tolist()) for end in ends}) == 4
    output = (tmp_path / "output.txt").read_text()
    for n in range(
        4
    ):  # no epoch of an expert was trained twice, but for the one that the dead process was in
        assert sum(f"expert {n + 1}/4, epoch {epoch}/3" in output for epoch in (1, 2, 3)) == 3
    epochs = [(line["expert"], line["epoch"]) for line in read_log(tmp_path / "logged_files/toy/buffer")]
    assert epochs == [(n, epoch) for n in range(4) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_saves_the_state_at_once(forker, home, number, name):
    directory = home / "logged_files/toy" / name
    argv = distill(home, name, "--save_it", "1000", "--eval_it", "1000")
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
            "distill_lors", distill(home, f"{name}_none", "--save_it", "1000", "--eval_it", "1000"), home
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


def test_a_finished_run_says_so_and_other_flags_are_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    distill_lors.main(distill(home, "undisturbed"))
    assert "already has its 30 outer steps" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="holds a run with --lr_img 0.1, not 2.0: give another --name, or --fresh"
    ):
        distill_lors.main(distill(home, "undisturbed", "--lr_img", "2"))


def test_more_iterations_go_on_as_if_they_had_been_asked_for_at_once(forker, home):
    argv = distill(home, "longer")
    assert forker.run("distill_lors", [*argv, "--Iteration", "10"], home) == 0
    assert forker.run("distill_lors", argv, home) == 0
    assert_same_run(home / "logged_files/toy/undisturbed", home / "logged_files/toy/longer")


def test_what_evaluate_logged_stays_when_the_run_goes_on(forker, home):
    argv, directory = distill(home, "evaluated"), home / "logged_files/toy/evaluated"
    assert forker.run("distill_lors", [*argv, "--Iteration", "10"], home) == 0
    evaluate = [*toy(home), "--ckpt_path", directory, "--num_eval", "1", "--epoch_eval_train", "2"]
    assert forker.run("distill_utils.evaluate", evaluate, home) == 0
    assert forker.run("distill_lors", argv, home) == 0
    log = lines_without_times(directory)
    assert [line["program"] for line in log].count("evaluate") == 1
    assert [line for line in log if line["program"] == "distill"] == lines_without_times(
        home / "logged_files/toy/undisturbed"
    )


def test_resume_from_takes_the_state_of_another_run(forker, home):
    assert forker.run("distill_lors", distill(home, "half", "--Iteration", "10"), home) == 0
    directory = home / "logged_files/toy/elsewhere"
    assert (
        forker.run(
            "distill_lors", distill(home, "elsewhere", "--resume_from", home / "logged_files/toy/half"), home
        )
        == 0
    )
    one, other = (
        SyntheticSet.load(folder / "distilled_30.pt")
        for folder in (home / "logged_files/toy/undisturbed", directory)
    )
    assert all(
        torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters())
    )  # the momentum went along
    assert [line["step"] for line in read_log(directory)] == list(range(10, 31))


# --- torchrun ---


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
    argv = distill(home, "two_ranks", "--num_eval", "2")
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
    assert forker.run("distill_lors", distill(home, "one_rank", "--num_eval", "2"), home) == 0
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


# --- the disk ---


def test_a_full_disk_costs_nothing_but_the_step(forker, home):
    directory = home / "logged_files/toy/full_disk"
    argv = distill(home, "full_disk")
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


def test_experts_that_would_not_fit_are_refused_before_any_is_trained(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(buffer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        UserError, match="2 experts need .* GiB while they train, but .* 0.00 GiB free: see --keep_snapshots"
    ):
        buffer.main([*toy(home), *EXPERTS, "--buffer_path", f"{tmp_path}/buffers"])


def test_the_published_experts_fit_in_what_is_promised():
    model = build_model("nfnet", 768, pretrained=False, checkpoint_dir="none")
    size = partial(buffer.stored_bytes, model, 20)
    gib = [size(11, torch.float32, False), size(3, torch.float32, True), size(3, torch.bfloat16, True)]
    assert [round(value / 2**30, 1) for value in gib] == [32.7, 6.6, 3.3]


def test_compact_buffers_hold_the_same_snapshots_in_less(forker, home, tmp_path):
    whole = ExpertTrajectories(home / "buffers" / EXPERTS_FOLDER)
    size = lambda folder: sum(path.stat().st_size for path in folder.glob("*.pt"))  # noqa: E731
    for dtype, tolerance, share in (("float32", 0, 0.5), ("bfloat16", 2**-8, 0.25)):
        folder = tmp_path / dtype / EXPERTS_FOLDER
        flags = ["--buffer_dtype", dtype, "--keep_snapshots", "2", "--buffer_path", f"{tmp_path}/{dtype}"]
        assert forker.run("buffer", [*toy(home), *EXPERTS, *flags], tmp_path) == 0
        compact = ExpertTrajectories(folder)
        for n in range(2):
            for found, wanted in zip(compact.pair(n, 0, 1), whole.pair(n, 0, 1)):
                for a, b in zip(found, wanted):
                    assert a.dtype == torch.float32 and bool(((a - b).abs() <= tolerance * b.abs()).all())
        assert size(folder) < share * size(home / "buffers" / EXPERTS_FOLDER)
    assert "2 experts of 2 snapshots: 0." in (tmp_path / "output.txt").read_text()


# --- numbers ---


def poisoned(monkeypatch, steps):
    """Matchers whose image gradient is NaN at the given outer steps."""
    calls = iter(range(1, 1000))

    class Poisoned(distill_lors.Matcher):
        def __call__(self, synthetic, *inner_loop):
            loss = super().__call__(synthetic, *inner_loop)
            if next(calls) in steps:
                synthetic.images.grad[0] = float("nan")
            return loss

    monkeypatch.setattr(distill_lors, "Matcher", Poisoned)


def test_a_poisoned_step_is_skipped_and_logged(home, monkeypatch):
    monkeypatch.chdir(home)
    poisoned(monkeypatch, {2, 3})
    directory = distill_lors.main(distill(home, "poisoned", "--Iteration", "5"))
    log = read_log(directory)
    assert [line.get("Guard/bad_steps") for line in log] == [None, None, 1, 2, None, None]
    assert (
        {"Guard/expert", "Guard/epoch"} <= set(log[2])
        and "Loss/grand" not in log[2]
        and "Loss/grand" in log[4]
    )
    assert SyntheticSet.load(directory / "distilled_5.pt").images.isfinite().all()


def test_too_many_poisoned_steps_restore_the_last_good_set_and_then_end_the_run(home, monkeypatch):
    monkeypatch.chdir(home)
    poisoned(monkeypatch, {11, 12})
    directory = distill_lors.main(distill(home, "restored", "--max_bad_steps", "2"))
    log = read_log(directory)
    assert (log[12]["Guard/restored_step"], log[12]["Guard/step_sizes"]) == (10, 0.5) and "Loss/grand" in log[
        13
    ]
    poisoned(monkeypatch, set(range(6, 1000)))
    with pytest.raises(UserError, match="2 times in a row and after 3 restarts"):
        distill_lors.main(distill(home, "hopeless", "--max_bad_steps", "2", "--Iteration", "100"))
    assert load_tensors(home / "logged_files/toy/hopeless/state.pt")["restores"] == 3


def test_an_expert_that_diverges_is_tried_under_another_seed_and_never_stored(
    home, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    original, calls = buffer.train_epoch, iter(range(1, 1000))

    def diverging(model, *args):
        loss = original(model, *args)
        if next(calls) == 2:
            raise buffer.Diverged("The training loss became nan.")
        return loss

    monkeypatch.setattr(buffer, "train_epoch", diverging)
    folder = buffer.main([*toy(home), *EXPERTS, "--num_experts", "1", "--buffer_path", f"{tmp_path}/buffers"])
    assert "seed 1 of 3 of this expert diverged" in capsys.readouterr().out
    assert json.loads((folder / "results_0.json").read_text())["attempt"] == 1
    assert [line["epoch"] for line in read_log(tmp_path / "logged_files/toy/buffer")] == [1, 2, 3]
    monkeypatch.setattr(buffer, "train_epoch", lambda *_: (_ for _ in ()).throw(buffer.Diverged("nan")))
    with pytest.raises(UserError, match="diverged under 3 seeds"):
        buffer.main([*toy(home), *EXPERTS, "--buffer_path", f"{tmp_path}/never"])
    assert not list((tmp_path / "never" / EXPERTS_FOLDER).glob("*.pt"))


# --- files that lie ---


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


LIES = [
    *(
        7,
        "text",
        [],
        {},
        [[]],
        [[[]]],
        [[[7]]],
        {"momentum": 1},
        {"set": [], "momentum": []},
        torch.zeros(3),
        [torch.zeros(3)],
    ),
    torch.zeros(3, dtype=torch.int64),
    {"image": torch.zeros(2, 3, 4, 4)},
    [[[torch.zeros(2, 2)]]],
    torch.sparse_coo_tensor(size=(1 << 30, 1 << 30)),
    [[[torch.zeros(1).expand(1 << 40)]]],
    {"image": torch.zeros(1).expand(1 << 20, 1 << 20)},
]


def mutations(whole, rng, trap, count):
    """(what was done, bytes or value to save) of `count` damaged versions of a file."""
    for n in range(count):
        data = bytearray(whole)
        kind = n % 4
        if kind == 0:
            yield "cut", bytes(data[: rng.randrange(len(data))])
        elif kind == 1:
            for _ in range(rng.choice((1, 1, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            yield "flipped", bytes(data)
        elif kind == 2:
            start = rng.randrange(len(data))
            data[start : start + rng.randrange(1, 2000)] = rng.randbytes(rng.randrange(0, 2000))
            yield "overwritten", bytes(data)
        else:
            yield "other", rng.choice([Bomb(trap), [Bomb(trap)], {"image": Bomb(trap)}, *LIES])


def test_300_damaged_files_are_refused_in_a_sentence_or_loaded_right(home, tmp_path):
    rng, trap = random.Random(0), tmp_path / "executed"
    run, experts = home / "logged_files/toy/undisturbed", home / "buffers" / EXPERTS_FOLDER

    def load_state(path):
        state, synthetic = distill_lors.other_start(path)
        if state is None:
            return None
        outer = distill_lors.Distillation.__new__(distill_lors.Distillation)
        outer.matcher = type("Matcher", (), {"length": None})()
        steps = dict(
            lr_img=1, lr_txt=1, lr_lr=1, lr_sim=1, momentum_syn=0.5, momentum_lr=0.5, momentum_sim=0.5
        )
        outer.synthetic, outer.optimizer = synthetic, distill_lors.outer_optimizer(synthetic, **steps)
        outer.load_state(state, path)
        return torch.cat([synthetic.images.detach().flatten(), *(m.flatten() for m in state["momentum"])])

    def load_set(path):
        return torch.cat([value.flatten() for value in SyntheticSet.load(path).tensors()])

    def load_experts(path):
        return torch.cat(
            [vector for weights in ExpertTrajectories(path.parent).pair(0, 1, 1) for vector in weights]
        )

    kinds = {
        "state.pt": (run / "state.pt", load_state),
        "distilled_30.pt": (run / "distilled_30.pt", load_set),
        "img_replay_buffer_0.pt": (experts / "img_replay_buffer_0.pt", load_experts),
    }
    tried = refused = 0
    for name, (source, load) in kinds.items():
        folder = tmp_path / name.removesuffix(".pt")
        folder.mkdir()
        if load is load_experts:
            (folder / "txt_replay_buffer_0.pt").write_bytes((experts / "txt_replay_buffer_0.pt").read_bytes())
        path = folder / name
        path.write_bytes(source.read_bytes())
        right = load(path)
        for what, damaged in mutations(source.read_bytes(), rng, trap, 100):
            path.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save(damaged, path)
            tried += 1
            try:
                found = load(path)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert what != "other" and torch.equal(found, right), f"{name}, {what}"
    assert tried == 300 and refused > 200 and not trap.exists()
    status = Path("/proc/self/status")
    if status.exists():
        assert (
            int(status.read_text().split("VmHWM:")[1].split()[0]) < 4 << 20
        )  # kB: far from what the liars claim


def test_a_compressed_archive_is_refused(tmp_path):
    import zipfile

    save_tensors(tmp_path / "plain.pt", [torch.zeros(1 << 20)])
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(UserError, match="compressed or larger than the file"):
        load_tensors(tmp_path / "bomb.pt")


def test_image_and_annotation_bombs_are_one_sentence(home, tmp_path, monkeypatch):
    from PIL import Image

    from data.karpathy import load_image, read_annotations

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (12, 12)).save(
        tmp_path / "big.png"
    )  # above the limit, below twice the limit: Pillow itself only warns
    with pytest.raises(UserError, match="big.png cannot be read as an image"):
        load_image(tmp_path / "big.png")
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="deep.json is not a JSON file"):
        read_annotations(tmp_path / "deep.json", ("image",))


def test_a_coreset_needs_no_state(home, monkeypatch):
    monkeypatch.chdir(home)
    path = coreset.main(["random", *toy(home), "--num_queries", "2"])
    assert not (path.parent / "state.pt").exists()

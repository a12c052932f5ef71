"""The programs' command lines at their smallest, for the tests that run whole commands."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import distill_lors

ROOT = Path(__file__).parent.parent
METRICS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")
DISTILL = (
    "--num_queries 6 --mini_batch_size 4 --syn_steps 2 --sim_rank 2 --Iteration 3 --eval_it 2 --num_eval 2 "
    "--epoch_eval_train 4 --lr_img 1 --lr_txt 1 --lr_sim 1 --lr_lr 0.0001"
).split()
LONG = [
    *DISTILL,
    *"--Iteration 30 --eval_it 10 --save_it 1 --num_eval 1 --epoch_eval_train 2".split(),
    *"--lr_img 0.1 --lr_txt 0.1 --lr_sim 0.1 --lr_lr 0.00001".split(),
]
EXPERTS = "--num_experts 2 --train_epochs 3 --batch_train 32 --eval_freq 2".split()
EXPERTS_FOLDER = "toy/test_nfnet_toy_bert/InfoNCE"


def toy(folder):
    """Flags of the smallest toy task, its data and checkpoints under `folder`."""
    return (
        f"--dataset toy --image_root {folder}/data --ann_root {folder}/data --toy_size 30,5,7 "
        "--image_size 32 --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert "
        f"--checkpoint_dir {folder}/checkpoints --num_workers 0 --device cpu"
    ).split()


def distill(folder, name, *more):
    """Runs three outer steps, anew; returns the run's folder."""
    argv = [*toy(folder), *DISTILL, "--buffer_path", f"{folder}/buffers", "--name", name, "--fresh", *more]
    return distill_lors.main(argv)


def long_run(folder, name, *more):
    """The flags of thirty outer steps, saved after each: long enough to be disturbed."""
    return [*toy(folder), *LONG, "--buffer_path", f"{folder}/buffers", "--name", name, *more]


def read_log(directory):
    return [json.loads(line) for line in (Path(directory) / "log.jsonl").read_text().splitlines()]


def sh_commands(file, folder, *arguments):
    """The commands that an sh file runs, as (program, arguments): `python`, `torchrun` and Slurm's own are
    stubs in `folder`, and the first two write down what they are called with.
    """
    record = folder / "commands"
    record.write_text("")
    write_down = f"printf '%s\\t' \"$@\" >> {record}; echo >> {record}"
    stubs = {"python": write_down, "torchrun": write_down, "srun": '"$@"', "scontrol": "echo node7"}
    for name, text in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_SUBMIT_DIR": ROOT,
        "SLURM_JOB_ID": "42",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NODELIST": "node7",
    }
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "VIRTUAL_ENV": "active"}
    environment = os.environ | {key: str(value) for key, value in (slurm | environment).items()}
    subprocess.run(["sh", file, *arguments], env=environment, check=True, capture_output=True)
    for line in record.read_text().splitlines():
        yield program_and_arguments(line.split("\t")[:-1])


def program_and_arguments(words):
    """The program, `x.py` or the module of -m, and its own arguments, of what `python` or `torchrun` gets."""
    words = list(words)
    while words[0].startswith("-"):
        launcher_flag = words.pop(0)
        if launcher_flag not in ("-m", "--standalone"):
            words.pop(0)  # its value
    return words[0], words[1:]


def browse(page, folder):
    """(what Chromium says of an HTML file on its console, its images drawn, its images, its charts); skips
    where there is no Chromium.

    The page forbids itself every request by its Content-Security-Policy; one that it tried would be on the
    console.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium on this machine")
    quiet = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    command = [
        browser,
        *quiet.split(),
        "--enable-logging=stderr",
        f"--user-data-dir={folder}/profile",
        "--dump-dom",
    ]
    text = Path(page).read_text()
    assert "Content-Security-Policy content=\"default-src 'none'; img-src data:;" in text
    done = subprocess.run([*command, f"file://{page}"], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # A copy that may run a script counts what was drawn.
    count = (
        "[...document.images].filter(i=>i.naturalWidth>0).length,document.images.length,"
        "document.querySelectorAll('svg').length"
    )
    probe = f"<script>onload=()=>{{document.title=[{count}]}}</script>"
    copy = Path(folder) / "probe.html"
    copy.write_text(text.replace("http-equiv", "name").replace("</body>", probe + "</body>"))
    done = subprocess.run([*command, f"file://{copy}"], capture_output=True, text=True, timeout=120)
    counts = re.search(r"<title>(\d+),(\d+),(\d+)</title>", done.stdout)
    return console, *map(int, counts.groups())


class Forker:
    """Runs the programs in processes of their own, each forked from one that has everything imported
    (forker.py).
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def _ask(self, command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, program, argv, cwd, **options):
        """The pid of a running command; what it prints is added to cwd/output.txt."""
        command = {
            "program": program,
            "argv": [*map(str, argv)],
            "cwd": str(cwd),
            "output": f"{cwd}/output.txt",
        }
        return self._ask(command | options)["pid"]

    def wait(self, pid):
        """Its exit status, -9 when it was killed."""
        return self._ask({"wait": pid})["status"]

    def run(self, program, argv, cwd, **options):
        return self.wait(self.start(program, argv, cwd, **options))

    def together(self, program, argv, cwd, processes=2):
        """The exit statuses of one command in several processes that are one job, as torchrun starts them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {
                "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free.getsockname()[1]),
            }
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        return [
            self.wait(pid)
            for pid in [self.start(program, argv, cwd, environment=shared | rank) for rank in ranks]
        ]

    def close(self):
        self._process.stdin.close()
        self._process.wait()

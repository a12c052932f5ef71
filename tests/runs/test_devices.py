"""The device is said first; a GPU that was asked for is used, or it is an error."""

import os
import subprocess
import sys

import pytest
import torch
from commands import ROOT, distill

from distill_utils.runs.devices import resolve_device
from distill_utils.runs.errors import UserError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("LORS_GPU", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_auto_is_the_cpu_only_where_no_gpu_was_asked_for(no_gpu, monkeypatch):
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UserError, match="GPU 3 was asked for, but none can be used on this machine"):
        resolve_device("auto")
    monkeypatch.setenv("LORS_GPU", "")  # an sh file that was given none, and tries the first
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setenv("LORS_GPU", "0,1")
    with pytest.raises(UserError, match="GPU 0,1 was asked for"):
        resolve_device("auto")
    assert resolve_device("cpu").type == "cpu"  # as the command line says


def test_fewer_gpus_than_were_asked_for(no_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LORS_GPU", "0,9")
    with pytest.raises(UserError, match="GPU 0,9 was asked for, but 1 of them can be used"):
        resolve_device("auto")


CHECK = """#!/bin/sh
exec {python} -c "from distill_utils.runs.devices import *
from distill_utils.runs.signals import run_program
import sys
sys.exit(run_program(lambda argv: print(resolve_device('auto').type)))"
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    "arguments, status, said",
    [([], 0, "cpu"), (["--x"], 0, "cpu"), (["cpu"], 0, "cpu")]
    + [
        ([gpu], 2, f"error: GPU {gpu} was asked for, but none can be used on this machine")
        for gpu in ("0", "3")
    ],
)
def test_an_sh_file_takes_the_cpu_only_when_it_was_given_no_gpu(tmp_path, arguments, status, said):
    (tmp_path / "python").write_text(CHECK.format(python=sys.executable))
    (tmp_path / "python").chmod(0o755)
    unset = {"LORS_GPU", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VIRTUAL_ENV": "active",
        "PYTHONPATH": str(ROOT),
    }
    command = ["sh", str(ROOT / "sh/distill_flickr_lors_100.sh"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status and (done.stdout + done.stderr).startswith(said), done


def test_a_run_says_first_what_it_computes_on(here, capsys, monkeypatch):
    distill(here, "says", "--Iteration", "1")
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"distill computes on cpu ({os.cpu_count()} cores), in fp32"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("distill_utils.runs.processes.follow_launcher", lambda: None)
    distill(here, "says", "--Iteration", "1")
    assert "computes on" not in capsys.readouterr().out

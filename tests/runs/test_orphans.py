"""What a dead process left half written is gone after the next start; what a living one writes stays."""

import os
import socket
import subprocess
import sys
import time

import pytest
from commands import EXPERTS, EXPERTS_FOLDER, distill, toy

import buffer
from distill_utils.runs.writing import partial_path, remove_orphans
from networks.text_encoders import ensure_toy_bert


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def orphan(folder, dead, name="state.pt"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{socket.gethostname()}.{dead}.tmp"
    path.write_text("half")
    return path


def test_only_what_belongs_to_nobody_goes(tmp_path, dead):
    old = time.time() - 2 * 24 * 3600
    gone = [
        orphan(tmp_path, dead),
        tmp_path / "a.other.host.9.tmp",
        tmp_path / f"folder.{socket.gethostname()}.{dead}.tmp",
    ]
    gone[1].write_text("half")
    os.utime(gone[1], (old, old))
    (gone[2] / "inside").mkdir(parents=True)
    kept = [
        partial_path(tmp_path / "own"),
        tmp_path / "b.other.host.9.tmp",
        tmp_path / "my.tmp",
        tmp_path / "notes.7.txt",
    ]
    kept.append(tmp_path / f"x.{socket.gethostname()}.1.tmp")  # the first process, alive and another user's
    for path in kept:
        path.write_text("whole")
    os.utime(kept[2], (old, old))
    remove_orphans(tmp_path)
    assert not any(path.exists() for path in gone) and all(path.exists() for path in kept)


def test_a_run_clears_its_folder(here, dead):
    directory = distill(here, "orphans", "--Iteration", "1")
    left = orphan(directory, dead), orphan(directory, dead, "distilled_7.pt")
    kept = directory / f"mine.{socket.gethostname()}.{os.getpid()}.tmp"
    kept.write_text("being written")
    distill(here, "orphans", "--Iteration", "1")
    assert not any(path.exists() for path in left) and kept.exists()


def test_experts_and_checkpoints_are_cleared(here, tmp_path, dead):
    folder = tmp_path / "buffers" / EXPERTS_FOLDER
    left = [
        orphan(folder, dead, "img_replay_buffer_0.pt"),
        orphan(folder / "partial_0", dead, "epoch_1.pt"),
        orphan(folder / ".locks", dead, "img_start.pt.verified"),
    ]
    options = ["--num_experts", "1", "--buffer_path", f"{tmp_path}/buffers", "--name", "cleared"]
    buffer.main([*toy(here), *EXPERTS, *options])
    assert not any(path.exists() for path in left)
    left = orphan(tmp_path / "checkpoints", dead, "toy_bert_x")
    ensure_toy_bert(["a circle"], tmp_path / "checkpoints", width=8, layers=1, heads=2)
    assert not left.exists()

"""Mistakes of a user, through whole commands: one sentence, before any work."""

import os
import subprocess
import sys

import pytest
from commands import ROOT, toy

from distill_utils import coreset
from distill_utils.runs.errors import UserError


def test_a_missing_image_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coreset.main(["random", *toy(tmp_path), "--num_queries", "2"])
    (tmp_path / "data/images/train_00003.png").unlink()
    (tmp_path / "data/toy_meta.json").unlink()
    for split in ("train", "val", "test"):
        (tmp_path / f"data/toy_{split}.json").rename(tmp_path / f"data/flickr8k_{split}.json")
    with pytest.raises(UserError, match="train_00003.png does not exist"):
        coreset.main(["random", *toy(tmp_path), "--dataset", "flickr8k", "--num_queries", "2"])


def test_a_mistake_on_the_command_line_prints_one_line_and_exits_2(tmp_path):
    programs = (
        [str(ROOT / "buffer.py"), "--dsa", "True"],
        [str(ROOT / "distill_lors.py"), "--dataset", "flickr", "--ann_root", "nowhere"],
        ["-m", "distill_utils.report", "nowhere"],
    )
    options = {
        "cwd": tmp_path,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"PYTHONPATH": str(ROOT)},
    }
    started = [subprocess.Popen([sys.executable, *program], **options) for program in programs]
    for done in started:
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors

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


def test_a_mistake_on_the_command_line_prints_one_line_and_exits_2(forker, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for program in (
        [str(ROOT / "distill_lors.py"), "--dataset", "flickr", "--ann_root", "nowhere"],
        ["-m", "distill_utils.report", "nowhere"],
    ):
        command = [sys.executable, *program]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        said = done.stderr
        assert done.returncode == 2 and said.startswith("error: ") and said.count("\n") == 1, said
    assert forker.run("buffer", ["--dsa", "True"], tmp_path) == 2
    said = (tmp_path / "output.txt").read_text()
    assert said.startswith("error: ") and said.count("\n") == 1, said

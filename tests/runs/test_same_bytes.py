"""The same values are the same bytes, whoever writes them, where and how often."""

import socket

import pytest
import torch
from commands import distill
from safetensors import safe_open

from distill_utils import export
from distill_utils.runs import writing
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_yaml
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.synthetic.set import SyntheticSet


def some_values():
    word = "".join(["ca", "ption"])  # an object of its own, as are strings that were read
    return {
        "weights": [[torch.arange(6.0).view(2, 3)], [torch.ones(4, dtype=torch.bfloat16)]],
        "meta": {word: [word, "cpu", "storage"], "sizes": (3, 4), "none": None, "one": 1.5},
    }


def test_a_file_does_not_depend_on_its_name_its_host_or_its_process(tmp_path, monkeypatch):
    save_tensors(tmp_path / "one.pt", some_values())
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    monkeypatch.setattr(writing.os, "getpid", lambda: 7)
    save_tensors(tmp_path / "folder/another name.pt", some_values())
    first, second = (tmp_path / name for name in ("one.pt", "folder/another name.pt"))
    assert first.read_bytes() == second.read_bytes()
    monkeypatch.undo()
    assert socket.gethostname().encode() not in first.read_bytes() and b"one" not in first.read_bytes()[:64]


def test_what_was_read_is_written_as_what_was_computed(tmp_path):
    save_tensors(tmp_path / "computed.pt", some_values())
    save_tensors(tmp_path / "read.pt", load_tensors(tmp_path / "computed.pt"))
    shared = some_values()
    shared["meta"]["caption"] = [shared["meta"]["caption"][0]] * 1 + ["cpu", "storage"]
    save_tensors(tmp_path / "shared.pt", shared)
    wanted = (tmp_path / "computed.pt").read_bytes()
    assert (tmp_path / "read.pt").read_bytes() == wanted == (tmp_path / "shared.pt").read_bytes()


def test_yaml_is_written_as_it_is_read_without_aliases(tmp_path):
    shared = [1, 2]
    writing.write_yaml(tmp_path / "a.yaml", {"one": shared, "other": shared})
    assert "&" not in (tmp_path / "a.yaml").read_text()
    assert read_yaml(tmp_path / "a.yaml") == {"one": [1, 2], "other": [1, 2]}
    (tmp_path / "b.yaml").write_text("one: &x [1, 2]\nother: *x\n")
    with pytest.raises(UserError, match="b.yaml cannot be read as YAML: it uses the alias"):
        read_yaml(tmp_path / "b.yaml")


def test_an_exported_set_is_the_same_bytes_every_time(here, tmp_path):
    run = distill(here, "exported", "--Iteration", "1")
    files = []
    for n in range(8):  # of three keys in any order
        export.main(["--ckpt_path", str(run), "--to", "safetensors", "--out", f"{tmp_path}/{n}.safetensors"])
        files.append((tmp_path / f"{n}.safetensors").read_bytes())
    assert len(set(files)) == 1
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert set(file.metadata()) == {"card", "pairs", "meta"}
        assert torch.equal(file.get_tensor("images"), SyntheticSet.load(run).images)

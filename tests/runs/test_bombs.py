"""Small files that would become gigabytes: refused in a sentence, and memory does not move."""

import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from commands import ROOT

from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_array, read_indices, read_json, read_yaml
from distill_utils.runs.tensors import load_tensors

PROBE = """
import resource, sys
from distill_utils.runs.errors import UserError
from distill_utils.runs import {module}
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
try:
    {module}.{function}(sys.argv[1])
except UserError as error:
    print(error)
print(peak() - before)
"""


def grown(path, module, function):
    """(the sentence, MB that a process of its own took to read the file)."""
    command = [sys.executable, "-c", PROBE.format(module=module, function=function), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, megabytes = done.stdout.splitlines()
    return "\n".join(said), float(megabytes)


def archive(path, data, storages=()):
    """A .pt of the pickle `data`."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")
        for key, content in enumerate(storages):
            file.writestr(f"archive/data/{key}", content)


class Call:
    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


def quadratic():
    """A dict that is copied into thousands of others."""
    from collections import OrderedDict

    source = {n: n for n in range(3000)}
    return pickle.dumps([Call(OrderedDict, source) for _ in range(3000)], 2)


PICKLES = {
    "bytearray": pickle.dumps(Call(bytearray, 2_000_000_000), 2),
    "copies": quadratic(),
    "bytes": b"\x80\x02B" + (2_000_000_000).to_bytes(4, "little") + b".",
    "memo": b"\x80\x02]r" + (400_000_000).to_bytes(4, "little") + b".",
    "protocol 5": b"\x80\x05\x96" + (2_000_000_000).to_bytes(8, "little") + b".",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_tensors(tmp_path, kind):
    archive(tmp_path / "bomb.pt", PICKLES[kind])
    sentence, megabytes = grown(tmp_path / "bomb.pt", "tensors", "load_tensors")
    assert "bomb.pt cannot be read as tensors" in sentence and "\n" not in sentence and megabytes < 200


def lying(tmp_path, what, by):
    """A .pt of a tensor of 7 numbers, one of whose claims is `by`."""
    torch.save([torch.zeros(7)], buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as whole:
        data = whole.read("archive/data.pkl")
    places = [n for n in range(len(data)) if data[n : n + 2] == b"K\x07"]  # of the storage, of the tensor
    for place in reversed([places[n] for n in what]):
        data = data[:place] + b"J" + by.to_bytes(4, "little") + data[place + 2 :]
    archive(tmp_path / "lie.pt", data, [bytes(28)])
    return tmp_path / "lie.pt"


@pytest.mark.parametrize("what", [(0,), (1,), (0, 1)], ids=["storage", "size", "both"])
@pytest.mark.parametrize("by", [8, 500_000_000])
def test_tensors_that_are_not_in_the_file(tmp_path, what, by):
    with pytest.raises(UserError, match="lie.pt cannot be read as tensors: .* claims .* the file holds"):
        load_tensors(lying(tmp_path, what, by))


def test_two_parts_of_one_name(tmp_path):
    archive(tmp_path / "two.pt", pickle.dumps([], 2))
    with zipfile.ZipFile(tmp_path / "two.pt", "a") as file:
        file.writestr("archive/DATA.pkl", PICKLES["bytearray"])
    with pytest.raises(UserError, match="two of its parts have one name"):
        load_tensors(tmp_path / "two.pt")


def npy(path, shape, dtype="<i8", held=0):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.write(bytes(held))


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62, 1 << 62), (200_000_000,), (-1,), (0, 1 << 62)])
def test_arrays(tmp_path, shape):
    npy(tmp_path / "bomb.npy", shape)
    sentence, megabytes = grown(tmp_path / "bomb.npy", "reading", "read_indices")
    assert "bomb.npy" in sentence and "\n" not in sentence and megabytes < 100


def test_arrays_of_either_byte_order_are_read(tmp_path):
    np.save(tmp_path / "big.npy", np.arange(3, dtype=">i4"))
    assert read_array(tmp_path / "big.npy").dtype == np.dtype("<i4")
    assert read_indices(tmp_path / "big.npy").tolist() == [0, 1, 2]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="objects.npy cannot be read as a .npy"):
        read_array(tmp_path / "objects.npy")


def test_yaml(tmp_path):
    lines = ["a0: &a0 [" + ",".join(["x"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, 9)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    assert (tmp_path / "laughs.yaml").stat().st_size < 600
    sentence, megabytes = grown(tmp_path / "laughs.yaml", "reading", "read_yaml")
    assert "laughs.yaml cannot be read as YAML: it uses the alias" in sentence and megabytes < 50


STRANGE = [
    "[" * 100_000,
    "1" * 5000,
    "\x00",
    "{1: 2}",
    "[1]",
    "2020-13-45: 1",
    "a: 2020-13-45",
    "? [a]\n: 1",
    "- a",
    "!!x y",
]


@pytest.mark.parametrize("text", STRANGE, ids=range(len(STRANGE)))
def test_strange_text_is_a_sentence(tmp_path, text):
    path = tmp_path / "strange"
    path.write_text(text)
    for read in (read_yaml, lambda path: read_json(path, {})):
        with pytest.raises(UserError, match="strange") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_files_of_a_size_that_none_has_are_not_opened(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 30)
    for read in (read_yaml, read_json):
        with pytest.raises(UserError, match="large has 1,073,741,824 bytes"):
            read(tmp_path / "large")

"""What the system refuses, and memory that is not there: one sentence and status 2, never a traceback."""

import errno
import importlib
import json
import os

import pytest
import torch
from commands import DISTILL, ROOT, distill, read_log, toy

import distill_lors
from distill_utils.runs import signals
from distill_utils.runs.errors import UserError
from distill_utils.runs.signals import run_program
from distill_utils.runs.tensors import save_tensors
from distill_utils.runs.writing import append_line, write_json


@pytest.fixture(autouse=True)
def _signals_of_pytest(monkeypatch):
    monkeypatch.setattr(signals._signals, "install", lambda: None)


def told(error, capsys, **options):
    def main(argv):
        raise error

    status = run_program(main, **options)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.ENOLCK, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EDQUOT, errno.EIO],
)
def test_what_the_system_refuses_is_a_sentence(number, capsys):
    error = OSError(number, os.strerror(number), "some/log.jsonl")
    assert told(error, capsys) == (2, f"error: some/log.jsonl: {os.strerror(number)}.\n")
    assert told(OSError(number, os.strerror(number)), capsys) == (2, f"error: {os.strerror(number)}.\n")


def test_a_lack_of_memory_names_the_flags_that_take_less(capsys):
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
    status, said = told(gpu, capsys, batch_flag="--mini_batch_size")
    assert status == 2 and said.count("\n") == 1
    assert said.startswith("error: The GPU's memory is full (CUDA out of memory. Tried to allocate 2 GiB.)")
    assert said.endswith("lower --mini_batch_size, or add --grad_checkpointing.\n")
    status, said = told(MemoryError(), capsys)
    assert status == 2 and said.startswith("error: This machine's memory is full")
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        assert told(error, capsys, batch_flag="--batch_eval")[1].startswith(
            "error: This machine's memory is full"
        )


def test_a_mistake_of_ours_keeps_its_traceback(capsys):
    for error in (RuntimeError("shapes"), KeyError("x"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            told(error, capsys)


@pytest.mark.parametrize(
    "program, flag",
    [("buffer", "batch_train"), ("distill_lors", "mini_batch_size")]
    + [(f"distill_utils.{name}", "batch_eval") for name in ("evaluate", "crossarch")],
)
def test_each_program_names_a_batch_flag_that_it_has(program, flag, capsys):
    source = (ROOT / f"{program.replace('.', '/')}.py").read_text()
    assert f'run_program(main, "--{flag}")' in source
    with pytest.raises(SystemExit):
        importlib.import_module(program).main(["--help"])
    assert f"--{flag} " in capsys.readouterr().out


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


@FULL
def test_a_log_on_a_full_disk_is_a_sentence(here, tmp_path):
    os.symlink("/dev/full", tmp_path / "log.jsonl")
    with pytest.raises(UserError, match="log.jsonl cannot be written: No space left on device"):
        append_line(tmp_path / "log.jsonl", "{}")
    # And in a run, whose lines go there from the first on: nothing else is lost, and it goes on later.
    directory = distill(here, "full_log", "--Iteration", "2")
    state = (directory / "state.pt").read_bytes()
    (directory / "log.jsonl").rename(directory / "kept")
    argv = [*toy(here), *DISTILL, "--buffer_path", f"{here}/buffers", "--name", "full_log"]
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(UserError, match="log.jsonl cannot be written: No space"),
    ):
        patch.setattr(
            "distill_utils.runs.folder.append_line",
            lambda path, text: append_line(tmp_path / "log.jsonl", text),
        )
        distill_lors.main(argv)
    assert len((directory / "state.pt").read_bytes()) > 0.9 * len(state)
    (directory / "kept").rename(directory / "log.jsonl")
    distill_lors.main(argv)
    assert [line["step"] for line in read_log(directory)] == [0, 1, 2, 3]


@FULL
def test_tensors_and_text_on_a_full_disk_are_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr("distill_utils.runs.writing.partial_path", lambda path: tmp_path / "full")
    for write in (save_tensors, write_json):
        os.symlink("/dev/full", tmp_path / "full")
        value = {"a": torch.zeros(1 << 16)} if write is save_tensors else "x" * (1 << 16)
        with pytest.raises(UserError, match="file cannot be written"):
            write(tmp_path / "file", value)
        assert not (tmp_path / "file").exists() and not (tmp_path / "full").is_symlink()


def test_a_torn_line_takes_no_other_with_it(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2, "lo')
    append_line(log, '{"step": 3}')
    append_line(log, '{"step": 4}')
    assert log.read_text().splitlines() == ['{"step": 1}', '{"step": 2, "lo', '{"step": 3}', '{"step": 4}']


STRANGE_LINES = [
    "7",
    "[]",
    "{}",
    '{"program": 1, "step": 1}',
    '{"program": "distill", "step": "x"}',
    "[" * 99_999,
]


def test_a_run_goes_on_over_lines_that_are_none(here):
    directory = distill(here, "strange_log", "--Iteration", "2")
    with open(directory / "log.jsonl", "a") as file:
        file.write("\n".join([*STRANGE_LINES, '{"program": "distill", "st']))
    distill_lors.main([*toy(here), *DISTILL, "--buffer_path", f"{here}/buffers", "--name", "strange_log"])
    assert [line["step"] for line in read_log(directory)] == [0, 1, 2, 3]


def test_a_caption_that_is_not_text_and_results_of_another_kind_are_sentences(here, tmp_path):
    annotations = json.loads((here / "data/toy_train.json").read_text())
    annotations[3]["caption"] = "\ud800"
    from data.karpathy import read_pairs
    from distill_utils.synthetic.checkpoint import find_checkpoint

    write_json(tmp_path / "train.json", annotations)
    with pytest.raises(UserError, match="train.json, entry 3: the caption .* is not text"):
        read_pairs(tmp_path / "train.json", here / "data")
    directory = distill(here, "other_results", "--Iteration", "1")
    for text in ("[]", "7", "null"):
        (directory / "results.json").write_text(text)
        with pytest.raises(UserError, match="results.json must hold keys and values"):
            find_checkpoint(directory)

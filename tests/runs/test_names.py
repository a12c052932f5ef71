"""What becomes part of a path, what may change when a run goes on, and flags of the reference."""

import sys

import pytest
from commands import DISTILL, distill, toy

import buffer
import distill_lors
from distill_utils import benchmark, compare, coreset, crossarch, evaluate, export, report
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError

NOT_NAMES = [
    "../../victim",
    "..",
    ".",
    "",
    " ",
    "a/b",
    "/tmp/x",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\0b",
    "x" * 300,
]


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_is_one_component_of_a_path(name):
    with pytest.raises(UserError, match="--name: expected the name of one folder"):
        flags.parse(distill_lors.make_parser(), [f"--name={name}"])
    with pytest.raises(UserError, match="--image_encoder: expected the name of one folder"):
        flags.parse(buffer.make_parser(), [f"--image_encoder={name}"])
    if name.strip():
        with pytest.raises(UserError, match="--image_encoders: expected the name of one folder"):
            flags.parse(crossarch.make_parser(), ["--ckpt_path=x", f"--image_encoders=nfnet,{name}"])


def test_a_name_of_a_folder_is_taken():
    assert flags.parse(distill_lors.make_parser(), ["--name", "lors 100_seed-1.2 é"]).name


def test_arguments_that_someone_else_wrote_reach_no_other_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("log.jsonl", "results.json", "state.pt"):
        (victim / name).write_text("precious")
    (tmp_path / "args.yaml").write_text("name: ../../victim\n")
    with pytest.raises(UserError, match="--name: expected the name of one folder.*'../../victim'"):
        distill_lors.main([*toy(tmp_path), *DISTILL, "--config", "args.yaml"])
    with pytest.raises(UserError, match="--name: expected the name of one folder"):
        coreset.main(["random", *toy(tmp_path), "--config", "args.yaml"])
    assert {file.read_text() for file in victim.iterdir()} == {"precious"}


@pytest.mark.parametrize("flag", ["--buffer_path", "--checkpoint_dir"])
def test_a_run_goes_on_with_the_same_experts_and_weights(here, flag):
    directory = distill(here, "goes_on", "--Iteration", "1")
    before = (directory / "state.pt").read_bytes()
    argv = [*toy(here), *DISTILL, "--buffer_path", f"{here}/buffers", "--name", "goes_on"]
    with pytest.raises(UserError, match=f"holds a run with {flag} .*, not {here}/others"):
        distill_lors.main([*argv, flag, f"{here}/others"])
    assert (directory / "state.pt").read_bytes() == before


@pytest.mark.parametrize(
    "program, flag",
    [
        (distill_lors, name)
        for name in "batch_train batch_size_train data_path std distill text_trainable".split()
    ]
    + [(buffer, "text_trainable"), (buffer, "std")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_flags_of_the_reference_have_their_sentence(program, flag):
    with pytest.raises(UserError, match=f"^--{flag} is not a flag of this project: ."):
        flags.parse(program.make_parser(), [f"--{flag}=1"])


def test_a_flag_of_the_reference_that_a_program_has_is_read():
    assert flags.parse(buffer.make_parser(), ["--batch_train", "5"]).batch_train == 5


@pytest.mark.parametrize(
    "program",
    [buffer, distill_lors, evaluate, crossarch, coreset, benchmark, compare, export, report],
    ids=lambda program: program.__name__,
)
def test_main_without_arguments_takes_what_was_typed(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program", "--help"])
    with pytest.raises(SystemExit) as exit:
        program.main()
    assert exit.value.code == 0 and "usage" in capsys.readouterr().out

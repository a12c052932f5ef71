"""Each flag of buffer.py arrives where it is meant to."""

import pytest
from commands import toy

import buffer
from distill_utils.experts.training import train_expert
from distill_utils.runs.seeds import derive_seed
from distill_utils.training.losses import LOSSES


class Reached(Exception):
    """The training was called; nothing further is of interest."""


@pytest.fixture
def reach(here, tmp_path, monkeypatch):
    """reach(*flags) -> what train_expert is called with, and the Progress."""
    told = {}

    def spy(make_model, task, progress, recipe, **options):
        assert options.keys() | {"make_model", "task", "progress", "recipe"} == parameters
        told.update(options, progress=progress, task=task, **recipe._asdict())
        raise Reached

    code = train_expert.__code__
    parameters = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    monkeypatch.setattr(buffer, "train_expert", spy)

    def reach(*flags):
        with pytest.raises(Reached):
            buffer.main([*toy(here), "--buffer_path", str(tmp_path), "--name", "reached", *flags])
        return dict(told)

    return reach


CASES = {
    "train_epochs": ("5", "epochs", 5),
    "batch_train": ("9", "batch_size", 9),
    "lr_teacher_img": ("0.3", "lr_img", 0.3),
    "lr_teacher_txt": ("0.4", "lr_txt", 0.4),
    "loss_type": ("KL", "loss_fn", LOSSES["KL"]),
    "temperature": ("0.2", "temperature", 0.2),
    "eval_freq": ("3", "eval_freq", 3),
    "precision": ("bf16", "precision", "bf16"),
    "seed": ("4", "seed", derive_seed(4, "expert", 0)),
}


def test_every_flag_of_the_recipe_reaches_the_training(reach):
    told = reach(*(word for flag, (value, *_) in CASES.items() for word in (f"--{flag}", value)))
    for flag, (_, name, wanted) in CASES.items():
        assert told[name] == wanted, flag


def test_no_flag_is_needed_and_the_defaults_are_the_published_ones(reach):
    told = reach()
    assert (told["epochs"], told["batch_size"], told["lr_img"], told["lr_txt"]) == (10, 128, 0.1, 0.1)
    assert told["loss_fn"] is LOSSES["InfoNCE"] and (told["temperature"], told["precision"]) == (0.07, "fp32")


@pytest.mark.parametrize(
    "flags, keep", [([], 11), (["--keep_snapshots", "4"], 4), (["--keep_snapshots", "99"], 11)]
)
def test_as_many_snapshots_are_kept_as_were_asked_for(reach, flags, keep):
    assert reach(*flags)["progress"].keep == keep


@pytest.mark.parametrize(
    "flags, augmentation", [([], "published"), (["--augmentation", "strong"], "strong"), (["--no_aug"], None)]
)
def test_experts_train_on_augmented_images_unless_told_otherwise(reach, flags, augmentation):
    assert reach(*flags)["task"].augmentation == augmentation

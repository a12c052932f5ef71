"""What an evaluation does not say, the set says: data, encoders, image size, temperature, loss."""

import pytest
import torch
from commands import distill, toy

from distill_utils import coreset, crossarch, evaluate
from distill_utils.evaluation import students
from distill_utils.runs.errors import UserError

QUICK = "--num_eval 1 --epoch_eval_train 2 --num_workers 0 --device cpu".split()


def arguments_of(monkeypatch):
    """What train_in_turn is called with."""
    seen = []
    plain = students.train_in_turn

    def spied(model, **arguments):
        seen.append(arguments)
        return plain(model, **arguments)

    monkeypatch.setattr(students, "train_in_turn", spied)
    return seen


def test_a_set_is_evaluated_as_it_was_made(here, monkeypatch):
    flags = [
        "--temperature",
        "0.5",
        "--loss_type",
        "KL",
        "--num_eval",
        "1",
        "--Iteration",
        "1",
        "--eval_it",
        "1",
    ]
    directory = distill(here, "warm", *flags)
    seen = arguments_of(monkeypatch)
    row = evaluate.main(["--ckpt_path", str(directory), *QUICK])["distilled"]
    assert [arguments["temperature"] for arguments in seen] == [0.5] and row["temperature"] == 0.5
    assert (
        row["loss"] == "KL" and row["dataset"] == row["distilled_from"] == "toy" and row["image_size"] == 32
    )
    assert row["image_encoder"] == "test_nfnet" and row["text_encoder"] == "toy_bert"


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--temperature", "0.1"],
            "with temperature 0.07, which --temperature 0.1 contradicts: leave it out",
        ),
        (["--image_encoder", "test_vit"], "image_encoder 'test_nfnet', which .* see distill_utils.crossarch"),
        (["--image_size", "16"], "with image_size 32, which --image_size 16 contradicts"),
        (["--image_trainable", "false"], "which --image_trainable False contradicts"),
    ],
)
def test_a_flag_that_contradicts_the_set_is_refused(here, flags, words):
    path = coreset.main(["random", *toy(here), "--num_queries", "4", "--name", "contradicted"])
    with pytest.raises(UserError, match=words):
        evaluate.main(["--ckpt_path", str(path), *QUICK, *flags])


def test_another_data_set_is_a_transfer_and_the_row_says_so(here, tmp_path, monkeypatch, capsys):
    path = coreset.main(["random", *toy(here), "--num_queries", "4", "--name", "transferred"])
    for split in ("train", "val", "test"):
        content = (here / f"data/toy_{split}.json").read_text()
        (tmp_path / f"flickr8k_{split}.json").write_text(content)
    roots = [
        "--image_root",
        f"{here}/data",
        "--ann_root",
        str(tmp_path),
        "--checkpoint_dir",
        f"{here}/checkpoints",
    ]
    row = evaluate.main(["--ckpt_path", str(path), *QUICK, "--dataset", "flickr8k", *roots])["distilled"]
    assert (row["dataset"], row["distilled_from"]) == ("flickr8k", "toy")
    assert "4 pairs, distilled from toy, on flickr8k" in capsys.readouterr().out


def test_a_file_of_the_reference_says_nothing_so_the_flags_do(here):
    path = coreset.main(["random", *toy(here), "--num_queries", "4", "--name", "bare"])
    saved = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "meta"}, path)
    row = evaluate.main([*toy(here), "--ckpt_path", str(path), *QUICK, "--temperature", "0.2"])["distilled"]
    assert row["temperature"] == 0.2 and row["distilled_from"] is None


def test_students_of_another_architecture_ask_the_set_for_the_rest(here, monkeypatch):
    path = coreset.main(
        ["random", *toy(here), "--num_queries", "4", "--name", "crossing", "--temperature", "0.3"]
    )
    seen = arguments_of(monkeypatch)
    rows = crossarch.main(["--ckpt_path", str(path), *QUICK, "--image_encoders", "test_vit,test_nfnet"])
    assert list(rows) == ["test_vit + toy_bert", "test_nfnet + toy_bert"]
    assert [arguments["temperature"] for arguments in seen] == [0.3, 0.3]
    with pytest.raises(UserError, match="--temperature 0.1 contradicts"):
        crossarch.main(["--ckpt_path", str(path), *QUICK, "--temperature", "0.1"])

"""evaluate and crossarch as commands on toy data."""

import json

import pytest
import torch
from commands import toy

from distill_utils import coreset, crossarch, evaluate
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from networks.text_encoders import ensure_toy_bert


def test_a_coreset_is_a_synthetic_set(here):
    path = coreset.main(["random", *toy(here), "--num_queries", "6"])
    synthetic = SyntheticSet.load(path)
    assert torch.equal(synthetic.similarity(), torch.eye(6)) and synthetic.similarity.kind == "identity"
    rows = evaluate.main([*toy(here), "--ckpt_path", str(path), "--num_eval", "1", "--epoch_eval_train", "2"])
    assert rows["distilled"]["loss"] == "InfoNCE"


def test_students_of_other_architectures(here, capsys):
    path = coreset.main(["random", *toy(here), "--num_queries", "6", "--name", "crossed"])
    other = ensure_toy_bert(["other words", "make another encoder"], here / "checkpoints", width=32)
    flags = ["--ckpt_path", str(path), "--num_eval", "1", "--epoch_eval_train", "2"]
    lists = ["--image_encoders", "test_nfnet,test_vit", "--text_encoders", f"toy_bert,{other}"]
    rows = crossarch.main([*toy(here), *flags, *lists])
    assert [name.endswith("(source captions)") for name in rows] == [False, False, True, True] and len(
        rows
    ) == 4
    assert json.loads((path.parent / "results.json").read_text())["cross"].keys() == rows.keys()
    assert "test_vit + toy_bert" in capsys.readouterr().out
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"meta": saved["meta"] | {"source_captions": None}}, path)
    with pytest.raises(UserError, match="not the captions they began as"):
        crossarch.main([*toy(here), *flags, *lists])


def test_students_of_other_architectures_on_a_file_of_the_reference(here):
    """It does not say whose its texts are: they are taken for the task's, where their width allows it."""
    path = coreset.main(["random", *toy(here), "--num_queries", "6", "--name", "crossed_reference"])
    saved = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "meta"}, path)
    flags = ["--ckpt_path", str(path), "--num_eval", "1", "--epoch_eval_train", "2"]
    rows = crossarch.main([*toy(here), *flags, "--image_encoders", "test_nfnet"])
    assert list(rows) == ["test_nfnet + toy_bert"]
    other = ensure_toy_bert(["other words", "make another encoder"], here / "checkpoints", width=32)
    with pytest.raises(UserError, match="width 256, but --text_encoder .* gives 32"):
        crossarch.main([*toy(here), *flags, "--text_encoders", str(other)])


def test_evaluate_breaks_recall_down(here, capsys):
    path = coreset.main(["random", *toy(here), "--num_queries", "6", "--name", "broken_down"])
    rows = evaluate.main(
        [*toy(here), "--ckpt_path", str(path), "--num_eval", "2", "--epoch_eval_train", "2", "--breakdown"]
    )
    groups = rows["distilled"]["breakdown"]
    assert (
        groups["images with 5 captions"]["queries"] == 7
        and groups["images with 5 captions"]["txt_r1"] == rows["distilled"]["txt_r1"]
    )
    out = capsys.readouterr().out
    assert "images with 5 captions" in out and "plain pairs" in out and "6.00" in out


def test_evaluate_refuses_another_text_encoder_and_size(here):
    path = coreset.main(["random", *toy(here), "--num_queries", "4", "--name", "refused"])
    saved = torch.load(path, weights_only=True)
    for change, words in (
        ({"text": saved["text"][:, :5]}, "width 5, but --text_encoder toy_bert gives 256"),
        ({"image": saved["image"][..., :16, :16]}, "16 pixels"),
        ({"meta": saved["meta"] | {"text_fingerprint": "0"}}, "other weights of the text encoder"),
    ):
        torch.save(saved | change, path)
        with pytest.raises(UserError, match=words):
            evaluate.main([*toy(here), "--ckpt_path", str(path)])

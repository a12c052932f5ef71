"""The same commands, from experts to the report, on real photos."""

import json

import pytest
from commands import DISTILL, browse

import buffer
import distill_lors
from distill_utils import evaluate
from distill_utils.report import main as report


@pytest.fixture(scope="module")
def flickr8k(shared):
    root = shared.resolve() / "flickr8k_1k"
    return [
        "--dataset",
        "flickr8k",
        "--image_root",
        str(root),
        "--ann_root",
        str(root),
        "--text_encoder",
        "toy_bert",
        "--image_encoder",
        "test_nfnet",
        "--image_pretrained",
        "false",
        "--image_size",
        "32",
        "--num_workers",
        "0",
        "--device",
        "cpu",
    ]


def test_real_photos_go_through_the_same_commands(flickr8k, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [*flickr8k, "--checkpoint_dir", f"{tmp_path}/checkpoints", "--no_aug"]
    buffer.main(
        [
            *common,
            "--num_experts",
            "1",
            "--train_epochs",
            "2",
            "--eval_freq",
            "1",
            "--buffer_path",
            f"{tmp_path}/b",
        ]
    )
    gentle = "--num_eval 1 --max_start_epoch 1 --lr_img 0.1 --lr_txt 0.1 --lr_sim 0.1 --lr_lr 0.00001".split()
    directory = distill_lors.main(
        [*common, *DISTILL, *gentle, "--buffer_path", f"{tmp_path}/b", "--name", "run"]
    )
    rows = evaluate.main(
        [*common, "--ckpt_path", str(directory), "--num_eval", "1", "--epoch_eval_train", "2"]
    )
    assert 0 <= rows["distilled"]["r_mean"]["mean"] <= 100
    nearest = json.loads((directory / "nearest.json").read_text())["captions"]
    assert len(nearest) == 6 and all(len(captions) == 3 for captions in nearest)
    console, drawn, images, charts = browse(report([str(directory)]).absolute(), tmp_path)
    assert not console and drawn == images >= 7 and charts == 3

"""The programs' own command lines with tiny numbers, in one process, on toy data and on real photos."""

import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from commands import DISTILL, EXPERTS, ROOT, browse, read_log, toy

import buffer
import distill_lors
from distill_utils import compare, coreset, crossarch, evaluate
from distill_utils.report import main as report
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.task.from_flags import open_task
from distill_utils.task.retrieval_task import RetrievalTask
from networks.text_encoders import ensure_toy_bert
from networks.two_tower import FrozenEncoder

METRICS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")


def distill(folder, name, *more):
    return distill_lors.main(
        [*toy(folder), *DISTILL, "--buffer_path", f"{folder}/buffers", "--name", name, "--fresh", *more]
    )


def test_buffer_writes_experts_results_and_meta(here):
    folder = here / "buffers/toy/test_nfnet_toy_bert/InfoNCE"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{tower}_replay_buffer_{n}.pt" for tower in ("img", "txt") for n in (0, 1)]
        + ["forgetting_0.pt", "forgetting_1.pt", "results_0.json", "results_1.json", "meta.yaml", ".locks"]
    )
    (expert,) = torch.load(folder / "img_replay_buffer_0.pt", weights_only=True)
    assert len(expert) == 4 and all(
        not torch.equal(a[0], b[0]) for a, b in zip(expert, expert[1:])
    )  # four distinct snapshots
    (other,) = torch.load(folder / "img_replay_buffer_1.pt", weights_only=True)
    assert torch.equal(expert[0][0], other[0][0]) and not torch.equal(
        expert[1][0], other[1][0]
    )  # one start of the image tower, two experts
    results = json.loads((folder / "results_0.json").read_text())
    assert [point["epoch"] for point in results["curve"]] == [2, 3] and set(results["val"]) == set(METRICS)
    log = read_log(here / "logged_files/toy/buffer")
    assert (
        [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
        and "Results/img_r1" in log[1]
        and "Results/img_r1" not in log[0]
    )
    meta = yaml.safe_load((folder / "meta.yaml").read_text())
    assert meta["parameters"]["img"][0][1] == list(expert[0][0].shape) and meta["train_epochs"] == 3


def test_buffer_keeps_finished_experts_and_refuses_other_settings(here, capsys):
    folder = here / "buffers/toy/test_nfnet_toy_bert/InfoNCE"
    before = (folder / "img_replay_buffer_0.pt").stat().st_mtime_ns
    buffer.main([*toy(here), *EXPERTS, "--buffer_path", f"{here}/buffers", "--name", "again"])
    assert (
        folder / "img_replay_buffer_0.pt"
    ).stat().st_mtime_ns == before and "already in" in capsys.readouterr().out
    with pytest.raises(UserError, match="train_epochs 3, not 4"):
        buffer.main(
            [
                *toy(here),
                *EXPERTS,
                "--buffer_path",
                f"{here}/buffers",
                "--train_epochs",
                "4",
                "--name",
                "again",
            ]
        )


def test_distill_evaluate_report(here):
    directory = distill(here, "run")
    assert {
        "args.yaml",
        "log.jsonl",
        "results.json",
        "nearest.json",
        "distilled_0.pt",
        "distilled_2.pt",
        "distilled_3.pt",
    } <= {p.name for p in directory.iterdir()}
    log = read_log(directory)
    assert [line["step"] for line in log] == [0, 1, 2, 3]
    assert {
        "Loss/grand",
        "Loss/img_grand",
        "Loss/txt_grand",
        "Synthetic_LR/Image",
        "Synthetic_LR/Text",
        "seconds",
    } <= set(log[1])
    assert (
        all(f"{name}/{key}" in log[2] for name in ("Mean", "Std") for key in METRICS)
        and "Mean/r_mean" not in log[1]
    )
    first, last = (SyntheticSet.load(directory / f"distilled_{step}.pt") for step in (0, 3))
    assert all(
        not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters())
    )  # everything is learned
    assert len(set(first.meta["source_captions"])) == 6 and last.meta["step"] == 3
    assert torch.equal(first.similarity(), torch.eye(6))

    rows = evaluate.main(
        [
            *toy(here),
            "--ckpt_path",
            str(directory),
            "--num_eval",
            "3",
            "--epoch_eval_train",
            "4",
            "--baselines",
            "--buffer_path",
            f"{here}/buffers",
        ]
    )
    results = json.loads((directory / "results.json").read_text())
    for row in ("random", "random_same_loss", "distilled", "full"):
        assert results[row]["r_mean"] == rows[row]["r_mean"] and set(results[row]["r_mean"]) == {
            "mean",
            "std",
            "n",
        }
    assert [results[row]["r_mean"]["n"] for row in ("random", "random_same_loss", "distilled", "full")] == [
        3,
        3,
        3,
        2,
    ]
    assert [results[row]["loss"] for row in ("random", "random_same_loss", "distilled")] == [
        "InfoNCE",
        "WBCE",
        "WBCE",
    ]
    assert (
        results["distilled"]["file"] == f"distilled_{results['selected_step']}.pt"
        and len(results["evaluations"]) == 3
    )
    assert (
        yaml.safe_load((directory / "args.yaml").read_text())["num_queries"] == 6
    )  # evaluate leaves the run's own arguments

    report([str(directory)])
    assert (directory / "report.html").read_text().startswith("<!")


def test_args_yaml_replays_the_run_to_the_byte(here):
    first = distill(here, "one", "--seed", "5")
    config = yaml.safe_load((first / "args.yaml").read_text())
    assert {"git_commit", "torch", "device", "seed", "command"} <= set(config["_run"])
    second = distill_lors.main(["--config", str(first / "args.yaml"), "--name", "two"])
    for step in (0, 3):
        one, two = (
            torch.load(directory / f"distilled_{step}.pt", weights_only=True) for directory in (first, second)
        )
        assert all(
            torch.equal(one[key], two[key]) for key in ("image", "text", "similarity_mat", "syn_lr_img")
        )
    drop = lambda line: {
        key: value for key, value in line.items() if key not in ("time", "seconds", "memory_mb")
    }  # noqa: E731
    assert [drop(line) for line in read_log(first)] == [drop(line) for line in read_log(second)]
    other = distill(here, "three", "--seed", "6")
    assert not torch.equal(
        SyntheticSet.load(other / "distilled_3.pt").images, SyntheticSet.load(first / "distilled_3.pt").images
    )


@pytest.mark.parametrize(
    "more",
    [
        ("--gradient", "full", "--second_order", "reverse", "--merge_loss_branches"),
        ("--second_order", "finite", "--sim_type", "full", "--loss_type", "KL"),
        ("--sim_type", "identity", "--loss_type", "InfoNCE", "--pix_init", "noise", "--txt_init", "noise"),
        ("--momentum_syn", "0", "--lr_lr", "0"),
        ("--sim_type", "expert", "--learn", "images,lrs"),
    ],
)
def test_variants_run(here, more):
    directory = distill(here, "variant", "--num_eval", "1", "--eval_it", "3", *more)
    synthetic = SyntheticSet.load(directory / "distilled_3.pt")
    assert all(torch.isfinite(parameter).all() for parameter in synthetic.parameters())
    if "--lr_lr" in more:
        assert synthetic.lr_img.item() == pytest.approx(0.1)
    if "--learn" in more:
        first = SyntheticSet.load(directory / "distilled_0.pt")
        assert torch.equal(first.texts, synthetic.texts) and not torch.equal(first.images, synthetic.images)
        similarity = synthetic.similarity()
        assert (
            similarity.diagonal().eq(1).all()
            and not torch.equal(similarity, torch.eye(6))
            and 0 <= similarity.min() <= similarity.max() <= 1
        )
    if "noise" in more:
        assert synthetic.meta["source_captions"] == [None] * 6


def test_several_seeds_are_several_runs_and_one_table(here, capsys):
    folders = distill(here, "seeds", "--num_seeds", "2", "--Iteration", "1", "--num_eval", "1", "--seed", "3")
    assert [folder.name for folder in folders] == ["seeds_seed3", "seeds_seed4"]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    means = [
        next(e for e in r["evaluations"] if e["step"] == r["selected_step"])["r_mean"]["mean"]
        for r in results
    ]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("all "))
    assert f"{sum(means) / 2:.1f} ± " in line
    alone = distill(here, "alone", "--Iteration", "1", "--num_eval", "1", "--seed", "4")
    assert torch.equal(
        *(SyntheticSet.load(folder / "distilled_1.pt").images for folder in (alone, folders[1]))
    )


def test_resume_from_goes_on_at_its_step(here):
    directory = distill(here, "begun")
    resumed = distill(here, "resumed", "--resume_from", str(directory / "distilled_2.pt"), "--Iteration", "4")
    assert [line["step"] for line in read_log(resumed)] == [2, 3, 4]


def test_the_learned_rates_have_a_floor(here):
    directory = distill(
        here,
        "floor",
        "--lr_lr",
        "1000",
        "--clamp_lr",
        "0.05",
        "--num_eval",
        "1",
        "--Iteration",
        "1",
        "--eval_it",
        "5",
    )
    synthetic = SyntheticSet.load(directory / "distilled_1.pt")
    assert synthetic.lr_img.item() >= 0.05 - 1e-6 and synthetic.lr_txt.item() >= 0.05 - 1e-6


def test_a_diverging_run_says_so_and_keeps_what_was_saved(here):
    with pytest.raises(
        UserError, match="gradient of .* is not finite, 1 times in a row and after 3 restarts"
    ):
        flags = (
            "--lr_img 1e30 --lr_txt 1e30 --lr_lr 1e9 --num_eval 1 --max_bad_steps 1 --Iteration 20".split()
        )
        distill(here, "nan", *flags)
    assert SyntheticSet.load(here / "logged_files/toy/nan/distilled_0.pt").images.isfinite().all()


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


@pytest.mark.parametrize(
    "more, words",
    [
        (["--num_queries", "31"], "--num_queries 31 asks for more pairs than the 30 train images"),
        (["--mini_batch_size", "7"], "--mini_batch_size 7 is more than"),
        (["--image_size", "40"], "image_size 32, but this run has 40"),
        (["--buffer_path", "elsewhere"], "holds no experts"),
        (["--expert_epochs", "3"], "has 3 epochs"),
        (["--device", "cuda:99"], "'cuda:99' cannot be used here"),
        (["--no_aug"], "holds no experts"),
        (["--resume_from", "absent.pt"], "absent.pt does not exist"),
        (["--image_encoder", "nonet"], "'nonet' is neither"),
        (["--image_encoder", "resnet18"], "needs an encoder without BatchNorm"),
    ],
)
def test_bad_input_to_distillation_is_one_sentence(here, more, words):
    with pytest.raises(UserError, match=words):
        distill(here, "bad", *more)


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


def offline_history(directory):
    """Per wandb run that was written offline: (run id, its history, a dict a line), read from the .wandb file
    itself.

    A LevelDB log: after seven bytes, blocks of 32 KiB of records (checksum, length, kind), whose parts
    together are a protobuf.
    """
    versions = sorted(
        path.name
        for path in Path(importlib.util.find_spec("wandb.proto").submodule_search_locations[0]).glob("v[0-9]")
    )
    messages = importlib.import_module(f"wandb.proto.{versions[-1]}.wandb_internal_pb2")
    for file in sorted(directory.glob("wandb/offline-run-*/*.wandb")):
        data, at, part, history, name = file.read_bytes(), 7, b"", [], None
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            size, kind = struct.unpack("<4xHB", data[at : at + 7]) if left >= 7 else (0, 0)
            if not kind:  # the rest of a block is padding
                at += left
                continue
            part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
            if kind in (1, 4):  # a whole record, or the last part of one
                record, part = messages.Record.FromString(part), b""
                name = record.run.run_id or name
                if record.history.item:
                    history.append(
                        {
                            item.key or ".".join(item.nested_key): json.loads(item.value_json)
                            for item in record.history.item
                        }
                    )
        yield name, history


def test_an_offline_wandb_run_holds_every_curve_and_panel_and_goes_on(here):
    run = ["--wandb", "offline", "--num_eval", "1", "--check_gradient", "1"]
    directory = distill(here, "offline", *run, "--Iteration", "2")
    argv = [
        *toy(here),
        *DISTILL,
        "--buffer_path",
        f"{here}/buffers",
        "--name",
        "offline",
        *run,
        "--Iteration",
        "3",
    ]
    distill_lors.main(argv)  # the same command again
    (first, history), (second, continued) = offline_history(directory)
    assert first == second == yaml.safe_load((directory / "args.yaml").read_text())["_run"]["id"]
    wandb_lines = {int(line["_step"]): line for line in history + continued}
    log = {line["step"]: line for line in read_log(directory)}
    assert sorted(wandb_lines) == sorted(log) == [0, 1, 2, 3]
    for step, line in log.items():
        numbers = {key: value for key, value in line.items() if key not in ("program", "step", "time")}
        assert {key: wandb_lines[step][key] for key in numbers} == pytest.approx(numbers)
    assert {f"{name}/{key}" for name in ("Mean", "Std") for key in METRICS} <= set(wandb_lines[2])
    assert {
        "Loss/grand",
        "Loss/img_grand",
        "Loss/txt_grand",
        "Loss/train_loss",
        "Synthetic_LR/Image",
        "Synthetic_LR/Text",
    } <= set(wandb_lines[2])
    for step in (0, 2, 3):
        panel = wandb_lines[step]
        assert panel["Synthetic_Images._type"] == "images/separated" and panel["Synthetic_Images.count"] == 6
        assert (
            len(panel["Synthetic_Images.captions"]) == 6 and panel["Synthetic_Sentences._type"] == "html-file"
        )
    buffer.main(
        [
            *toy(here),
            *EXPERTS,
            "--num_experts",
            "1",
            "--buffer_path",
            f"{here}/wandb_experts",
            "--name",
            "wandb_experts",
            "--wandb",
            "offline",
        ]
    )
    ((_, epochs),) = offline_history(here / "logged_files/toy/wandb_experts")
    assert {f"Results/{key}" for key in METRICS} <= set(epochs[-1]) and all(
        "Loss/train_loss" in line for line in epochs
    )


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


def test_when_images_are_decoded_changes_no_random_number(here):
    """So that an expert that goes on in a later epoch, and decodes there, draws as an undisturbed one does."""
    args = flags.parse(buffer.make_parser(), [*toy(here), "--no_aug"])
    task = open_task(args, torch.device("cpu"))
    state = torch.get_rng_state()
    list(task.train_batches(32, torch.Generator(), "cpu"))
    task.real_pairs(torch.arange(3))
    list(task.train_images(7, "cpu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_frozen_image_tower_sees_real_images_once(here, monkeypatch):
    """Training on kept features is training on images: the same expert, the same recall."""
    frozen = [*toy(here), *EXPERTS, "--num_experts", "1", "--image_trainable", "false", "--no_aug"]
    folders = []
    for name in ("kept", "each_time"):
        if name == "each_time":
            monkeypatch.setattr(RetrievalTask, "look_through", lambda *_: None)
        else:
            calls = []
            plain = FrozenEncoder.forward
            monkeypatch.setattr(
                FrozenEncoder,
                "forward",
                lambda self, images: calls.append(images.dim()) or plain(self, images),
            )  # noqa: B023
        folders.append(buffer.main([*frozen, "--buffer_path", f"{here}/{name}", "--name", name]))
        if name == "kept":
            assert (
                calls.count(4) == 3 and calls.count(2) > 3 * 2
            )  # val, test and train images; then batches and galleries
    for file in ("img_replay_buffer_0.pt", "txt_replay_buffer_0.pt"):
        kept, each_time = (torch.load(folder / file, weights_only=True)[0] for folder in folders)
        assert all(
            torch.allclose(a, b, atol=1e-5) for one, other in zip(kept, each_time) for a, b in zip(one, other)
        )
        assert len(kept[0]) == len(each_time[0])
    run = [
        *toy(here),
        *DISTILL,
        "--image_trainable",
        "false",
        "--no_aug",
        "--buffer_path",
        f"{here}/kept",
        "--name",
        "frozen",
        "--fresh",
    ]
    assert SyntheticSet.load(distill_lors.main(run) / "distilled_3.pt").meta["image_trainable"] is False


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path, capsys):
    def result(value):
        cells = {key: {"mean": value, "std": 1.0, "n": 3} for key in METRICS}
        return cells | {
            "protocols": {protocol: cells for protocol in ("val", "last", "best")},
            "storage": 50.123,
        }

    for name, results in {
        "a_seed0": {"distilled": result(10.0), "evaluations": [], "selected_step": 3},
        "a_seed1": {
            "selected_step": 20,
            "evaluations": [{"step": 0} | result(1.0), {"step": 20} | result(14.0)],
        },
        "b": {"distilled": result(5.0)},
        "c": {},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    rows = compare.main([str(tmp_path / name) for name in ("a_seed0", "b", "a_seed1")])
    assert list(rows) == ["a", "b"] and rows["a"]["r_mean"] == {
        "mean": 12.0,
        "std": pytest.approx(8**0.5),
        "n": 2,
    }
    assert "12.0 ± 2.8" in capsys.readouterr().out
    compare.main([str(tmp_path / "b"), "--markdown"])
    assert "| b | 5.0 ± 0.0 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no results.json with a result"):
        compare.main([str(tmp_path / "c")])

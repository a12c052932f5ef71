"""Each recipe of docs/development.md, done: its code runs, and a program then uses what it added."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import EXPERTS, ROOT, distill, read_log, toy
from documents import blocks, run_block
from PIL import Image
from test_architecture import FLOORS

import buffer
import distill_lors
from data import build_datasets
from distill_utils import coreset
from distill_utils.distillation.objectives import OBJECTIVES
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.selection.features import open_features
from distill_utils.synthetic import SyntheticSet
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.losses import LOSSES
from networks import image_encoders
from networks.text_encoders import ensure_toy_bert

QUICK = "--Iteration 2 --num_eval 1 --num_eval_during 1 --measurements 1 --epoch_eval_train 1".split()
RECIPES = {
    block.heading: block.text for block in blocks(ROOT / "docs/development.md") if block.language == "python"
}


def task_of(folder, *more):
    args = flags.parse(coreset.make_parser(), ["random", *toy(folder), *more])
    return args, open_task(args, torch.device("cpu"))


def test_a_loss(here):
    with run_block(RECIPES["A loss"]) as recipe:
        calls = []
        LOSSES["SoftHinge"] = lambda *z: calls.append(len(z[0])) or recipe.soft_hinge(*z)
        run = distill(here, "soft_hinge", *QUICK, "--loss_type", "SoftHinge")
    before, after = (SyntheticSet.load(run / f"distilled_{step}.pt") for step in (0, 2))
    assert after.meta["loss"] == "SoftHinge" and not torch.equal(before.images, after.images)
    assert {4, 6} <= set(calls)  # inner steps, and students on the whole set
    assert "SoftHinge" not in LOSSES
    with pytest.raises(UserError, match="SoftHinge"):
        distill(here, "soft_hinge", "--loss_type", "SoftHinge")


def test_an_image_encoder(here, tmp_path):
    with run_block(RECIPES["An image encoder"]) as recipe:
        image_encoders._ALIASES["patches"] = ("small_patches", "small_patches.pth", {})
        torch.save(recipe.small_patches(width=24).state_dict(), tmp_path / "small_patches.pth")
        assert image_encoders.build_image_encoder("patches", True, tmp_path).num_features == 24
        experts = [
            *EXPERTS,
            "--num_experts",
            "1",
            "--buffer_path",
            f"{here}/buffers",
            "--image_encoder",
            "small_patches",
        ]
        folder = buffer.main([*toy(here), *experts, "--name", "patches"])
        run = distill(here, "patches", *QUICK, "--image_encoder", "small_patches")
    assert "small_patches_toy_bert" in str(folder)
    assert SyntheticSet.load(run).meta["image_encoder"] == "small_patches"


def test_a_text_encoder(here):
    train = build_datasets("toy", here / "data", here / "data", toy_sizes=(30, 5, 7)).train
    checkpoint = ensure_toy_bert(train.captions, here / "checkpoints")
    shutil.copytree(checkpoint, here / "checkpoints/my-encoder", dirs_exist_ok=True)
    with run_block(RECIPES["A text encoder"]):
        path = coreset.main(["random", *toy(here), "--text_encoder", "mine", "--num_queries", "5"])
    theirs = coreset.main(["random", *toy(here), "--num_queries", "5"])
    assert path == theirs  # one name of a run, whichever encoder
    assert torch.equal(SyntheticSet.load(path).texts, SyntheticSet.load(theirs).texts)


def test_a_coreset_method(here):
    args, task = task_of(here, "--buffer_path", f"{here}/buffers")
    cpu = torch.device("cpu")
    scores = open_features(args, task, model_maker(args, task, cpu), cpu).clip_scores()
    with run_block(RECIPES["A coreset method"]):
        argv = ["least-alike", *toy(here), "--buffer_path", f"{here}/buffers", "--num_queries", "5"]
        path = coreset.main([*argv, "--unique_images", "false"])
    chosen = np.load(path.with_name("indices.npy"))
    assert chosen.tolist() == scores.argsort(stable=True)[:5].tolist()
    assert SyntheticSet.load(path).meta["coreset"] == "least-alike"
    with pytest.raises(UserError, match="least-alike"):
        coreset.main(argv)


def test_a_distillation_objective(here, monkeypatch):
    """Through the program: its outer loop, evaluation, log, state and resuming."""
    with run_block(RECIPES["A distillation objective"]) as recipe:
        made, opened = [], recipe.open_mean_matching

        def kept(*args):
            made.append(opened(*args))
            return made[-1]

        monkeypatch.setitem(OBJECTIVES, "means", kept)
        steps = [*QUICK, "--lr_txt", "2", "--objective", "means"]
        run = distill(here, "means", *steps, "--Iteration", "4")
        first = distill(here, "means_stopped", *steps)
        assert first.name == "means_stopped" and len(read_log(first)) == 3
        argv = (first / "args.yaml", "--Iteration", "4")
        distill_lors.main(["--config", *map(str, argv), "--resume", "auto"])
    assert len(made) == 3
    before, after = (SyntheticSet.load(run / f"distilled_{step}.pt") for step in (0, 4))
    real = made[0].real_texts.mean(dim=0)
    distance = [(distilled.texts.mean(dim=0) - real).norm() for distilled in (before, after)]
    assert distance[1] < distance[0] and torch.equal(before.images, after.images)
    assert all("Loss/grand" in line for line in read_log(run)[1:])
    assert torch.equal(SyntheticSet.load(first / "distilled_4.pt").texts, after.texts)
    assert json.loads((run / "results.json").read_text())["selected_step"] in (0, 2, 4)


def test_a_data_set(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, annotations = (tmp_path / "distill_utils/data" / name for name in ("Birds", "Birds_ann"))
    for folder in (images, annotations):
        folder.mkdir(parents=True)
    names = [f"bird{n}.png" for n in range(6)]
    for n, name in enumerate(names):
        Image.new("RGB", (20, 24), (40 * n, 90, 200)).save(images / name)
    train = [{"image": name, "caption": f"bird number {n}", "image_id": n} for n, name in enumerate(names)]
    gallery = [{"image": name, "caption": [f"bird number {n}", "a bird"]} for n, name in enumerate(names)]
    for split, entries in {"train": train, "val": gallery, "test": gallery}.items():
        (annotations / f"birds_{split}.json").write_text(json.dumps(entries))
    task = (
        "--image_size 32 --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert".split()
    )
    task += ["--checkpoint_dir", f"{tmp_path}/checkpoints", *"--num_workers 0 --device cpu".split()]
    with run_block(RECIPES["A data set"]):
        path = coreset.main(["random", "--dataset", "birds", *task, "--num_queries", "6"])
    chosen = SyntheticSet.load(path)
    assert chosen.meta["dataset"] == "birds"
    assert sorted(chosen.meta["source_captions"]) == [f"bird number {n}" for n in range(6)]
    assert path.parts[:2] == ("logged_files", "birds")


def test_the_list_of_rooms_goes_from_the_ground_up():
    page = (ROOT / "docs/development.md").read_text()
    rooms = [room.replace("/", ".") for room in re.findall(r"^\| `([\w/]+)` \|", page, re.M)][:-1]
    assert rooms == sorted(rooms, key=FLOORS.get)
    named = {f"distill_utils.{file.parent.name}" for file in ROOT.glob("distill_utils/*/__init__.py")}
    assert named | {"data", "networks"} == set(rooms)


def test_a_program(here, tmp_path):
    run = coreset.main(["random", *toy(here), "--num_queries", "5", "--name", "weighed"]).parent
    (tmp_path / "weigh.py").write_text(RECIPES["A program"])
    command = [sys.executable, tmp_path / "weigh.py", "--ckpt_path"]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([*command, run], cwd=here, **options)
    pairs = SyntheticSet.load(run).storage()
    assert done.returncode == 0 and done.stdout == f"{run} is as large as {pairs:.2f} plain pairs\n"
    with run_block(RECIPES["A program"]) as recipe:
        assert recipe.main(["--ckpt_path", str(run)]) == pairs
        for argv, sentence in (([], "--ckpt_path"), (["--ckpt_path", str(tmp_path)], "holds no distilled_")):
            with pytest.raises(UserError, match=sentence):
                recipe.main(argv)

"""What earlier code left in the middle of its work goes on: a run, experts, a pool's parts, a set.

fixtures/before_rooms was written by commit 96cb3e5 with the flags below, and cut short: the run after 3 outer
steps of 5, expert 1 after epoch 1 of 2, the pools before their last part. The .pt files were saved once more
under a neutral name.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import read_log

import buffer
import distill_lors
from distill_utils import coreset, evaluate, report
from distill_utils.distillation import objectives
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.runs.tensors import load_tensors
from distill_utils.synthetic.set import SyntheticSet
from networks.weights import Weights

FILES = Path(__file__).parent / "fixtures/before_rooms"
RUN = Path("logged_files/toy/run")
EXPERTS = Path("buffers/toy/test_convnext_tiny_bert/InfoNCE_NoAug")
TASK = (
    "--dataset toy --image_root data --ann_root data --toy_size 12,3,4 --image_size 32 --no_aug "
    "--image_encoder test_convnext --image_pretrained false --image_trainable false --text_encoder tiny_bert "
    "--checkpoint_dir checkpoints --num_workers 0 --device cpu"
).split()
BUFFER = "--buffer_path buffers --num_experts 2 --train_epochs 2 --batch_train 16 --eval_freq 2".split()
DISTILL = (
    "--buffer_path buffers --num_queries 4 --mini_batch_size 3 --syn_steps 2 --sim_rank 2 --eval_it 2 "
    "--num_eval 1 --epoch_eval_train 2 --lr_img 1 --lr_txt 1 --lr_sim 1 --lr_lr 0.0001 --save_it 1 --name run"
).split()
POOL = "vas --metadata_dir pool --fraction .45 --fraction_vas .3 --device cpu".split()
KINDS = {"static": ["--target_variance", "prior.npy"], "rounds": ["--num_iters", "4"]}


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """The folder that was left, as the current one."""
    folder = tmp_path / "left"
    shutil.copytree(FILES, folder)
    for file in (folder / "pool").iterdir():  # what the parts' names were made of, among others
        os.utime(file, ns=(10**18, 10**18))
    monkeypatch.chdir(folder)
    return folder


def test_a_run_goes_on_after_its_last_step(earlier):
    lines, state = (RUN / "log.jsonl").read_text(), load_tensors(RUN / "state.pt")
    arguments = yaml.safe_load((RUN / "args.yaml").read_text())
    distill_lors.main([*TASK, *DISTILL, "--Iteration", "5"])
    assert (RUN / "log.jsonl").read_text().startswith(lines)
    log = read_log(RUN)
    assert [line["step"] for line in log] == [0, 1, 2, 3, 4, 5]
    assert all(np.isfinite(line["Loss/grand"]) for line in log[4:])
    now = yaml.safe_load((RUN / "args.yaml").read_text())
    assert now["_run"]["id"] == arguments["_run"]["id"] and now["_run"]["resumed"][0]["step"] == 3
    results = json.loads((RUN / "results.json").read_text())
    assert [evaluation["step"] for evaluation in results["evaluations"]] == [0, 2, 3, 4, 5]
    old = SyntheticSet.from_saved(state["set"], "state.pt")
    new = SyntheticSet.load(RUN / "distilled_5.pt")
    for before, after in zip(old.parameters(), new.parameters()):
        assert not torch.equal(before, after) and after.isfinite().all()


def test_an_experts_training_goes_on_after_its_last_epoch(earlier, capsys):
    whole = {path: path.read_bytes() for path in EXPERTS.glob("*_0.*")}
    start, end = (load_tensors(EXPERTS / f"partial_1/epoch_{epoch}.pt") for epoch in (0, 1))
    log = (Path("logged_files/toy/buffer") / "log.jsonl").read_text()
    of_epoch = json.loads((EXPERTS / "partial_1/epoch_1.json").read_text())["lines"]
    buffer.main([*TASK, *BUFFER])
    assert len(whole) == 4 and all(path.read_bytes() == content for path, content in whole.items())
    assert (Path("logged_files/toy/buffer") / "log.jsonl").read_text().startswith(log)
    lines = read_log("logged_files/toy/buffer")
    assert [(line["expert"], line["epoch"]) for line in lines] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert lines[2] == of_epoch[0]  # the time in it, too: no epoch was trained twice
    output = capsys.readouterr().out
    assert "expert 1/2: already in" in output
    experts = ExpertTrajectories(EXPERTS)
    assert len(experts) == 2 and not (EXPERTS / "partial_1").exists()
    for stored, trained in zip(experts.pair(1, Weights(0, 0), 1), (start, end)):
        for vector, tower in zip(stored, ("img", "txt")):
            assert torch.equal(vector, torch.cat([piece.flatten() for piece in trained[tower]]))


def test_a_set_loads_and_is_evaluated_and_shown(earlier):
    path = RUN / "distilled_2.pt"
    saved, synthetic = load_tensors(path), SyntheticSet.load(path)
    assert torch.equal(synthetic.images, saved["image"]) and torch.equal(synthetic.texts, saved["text"])
    assert torch.allclose(synthetic.similarity(), saved["similarity_mat"]) and synthetic.meta["step"] == 2
    assert (synthetic.lr_img, synthetic.lr_txt) == (saved["syn_lr_img"], saved["syn_lr_txt"])
    flags = ["--ckpt_path", str(RUN), "--num_eval", "1", "--epoch_eval_train", "2"]
    rows = evaluate.main([*TASK, *flags])
    assert rows["distilled"]["pairs"] == 4
    page = report.main([str(RUN)])
    assert page.read_text().count("data:image/") >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_pools_old_parts_make_no_difference(kind, earlier):
    subset = np.load(f"{kind}.npy")
    for parts in (True, False):
        Path(f"{kind}.npy").unlink()
        if not parts:
            shutil.rmtree(f"{kind}.npy.parts", ignore_errors=True)
        coreset.main([*POOL, "--save_path", f"{kind}.npy", *KINDS[kind]])
        assert np.array_equal(np.load(f"{kind}.npy"), subset), f"parts: {parts}"


def test_the_files_tell_nothing_of_the_machine_they_were_made_on():
    for path in filter(Path.is_file, FILES.rglob("*")):
        content = path.read_bytes()
        assert not any(word in content for word in (b"/home/", b"/tmp/", b"/root/")), path
        # torch.save names an archive after its file, which while it is written has the machine's name in it.
        assert path.suffix != ".pt" or content[30:].startswith(b"archive/"), path


class Reached(Exception):
    """The objective was asked for; nothing further is of interest."""


def test_a_run_goes_on_with_the_minibatches_that_it_was_begun_with(earlier, monkeypatch):
    def spy(*_, minibatches, **__):
        raise Reached(minibatches)

    monkeypatch.setattr(objectives, "TrajectoryMatching", spy)
    for name, kind in (("run", "independent"), ("new", "permutation")):
        with pytest.raises(Reached, match=kind):
            distill_lors.main([*TASK, *DISTILL, "--Iteration", "5", "--name", name])

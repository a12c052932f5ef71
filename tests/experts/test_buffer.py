"""buffer.py as a command on toy data: what it writes, what it keeps, what it refuses."""

import json
import shutil

import pytest
import torch
import yaml
from commands import DISTILL, EXPERTS, EXPERTS_FOLDER, METRICS, distill, read_log, toy
from sameness import assert_same_run

import buffer
import distill_lors
from distill_utils.experts import training
from distill_utils.experts.folder import read_meta, write_meta
from distill_utils.runs import flags
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.task.from_flags import open_task
from distill_utils.task.retrieval_task import RetrievalTask
from networks.two_tower import FrozenEncoder


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


def test_when_images_are_decoded_changes_no_random_number(here):
    """So that an expert that goes on in a later epoch, and decodes there, draws as an undisturbed one."""
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
    calls, plain = [], FrozenEncoder.forward
    shutil.rmtree(here / "checkpoints/image_features", ignore_errors=True)  # what other tests have looked at

    def counted(self, images):
        calls.append(images.dim())
        return plain(self, images)

    monkeypatch.setattr(FrozenEncoder, "forward", counted)
    folders = [buffer.main([*frozen, "--buffer_path", f"{here}/kept", "--name", "kept"])]
    # val, test and train images; then batches and galleries
    assert calls.count(4) == 3 and calls.count(2) > 3 * 2
    monkeypatch.setattr(RetrievalTask, "look_through", lambda *_: None)
    folders.append(buffer.main([*frozen, "--buffer_path", f"{here}/each_time", "--name", "each_time"]))
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


def test_an_expert_that_diverges_is_tried_under_another_seed_and_never_stored(
    home, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    original, calls = training.train_epoch, iter(range(1, 1000))

    def diverging(model, *args):
        loss = original(model, *args)
        if next(calls) == 2:
            raise Diverged("The training loss became nan.")
        return loss

    monkeypatch.setattr(training, "train_epoch", diverging)
    folder = buffer.main([*toy(home), *EXPERTS, "--num_experts", "1", "--buffer_path", f"{tmp_path}/buffers"])
    assert "seed 1 of 3 of this expert diverged" in capsys.readouterr().out
    assert json.loads((folder / "results_0.json").read_text())["attempt"] == 1
    assert [line["epoch"] for line in read_log(tmp_path / "logged_files/toy/buffer")] == [1, 2, 3]
    monkeypatch.setattr(training, "train_epoch", lambda *_: (_ for _ in ()).throw(Diverged("nan")))
    with pytest.raises(UserError, match="diverged under 3 seeds"):
        buffer.main([*toy(home), *EXPERTS, "--buffer_path", f"{tmp_path}/never"])
    assert not list((tmp_path / "never" / EXPERTS_FOLDER).glob("*.pt"))


def test_experts_say_how_they_saw_images_and_distillation_refuses_others(here, tmp_path):
    folder = here / "buffers" / EXPERTS_FOLDER
    assert read_meta(folder)["augmentation"] == "published"
    with pytest.raises(
        UserError, match="augmentation 'published', but this run has 'strong' .--augmentation"
    ):
        distill(here, "stronger", "--augmentation", "strong")
    with pytest.raises(UserError, match="augmentation 'published', but this run has 'strong'"):
        argv = [*toy(here), *EXPERTS, "--buffer_path", f"{here}/buffers", "--augmentation", "strong"]
        buffer.main([*argv, "--name", "stronger"])
    shutil.copytree(folder, tmp_path / EXPERTS_FOLDER)
    meta = read_meta(folder)
    write_meta(tmp_path / EXPERTS_FOLDER, {key: meta[key] for key in meta if key != "augmentation"})
    distill(here, "unknown", "--augmentation", "strong", "--buffer_path", str(tmp_path))  # not known: taken


def test_a_folder_of_replay_buffers_is_taken_itself(here, tmp_path):
    """As the reference's scripts give --buffer_path."""
    experts = [*(here / "buffers" / EXPERTS_FOLDER).glob("*_replay_buffer_*.pt")]
    for file in experts:
        shutil.copy(file, tmp_path)
    one, other = distill(here, "by_root"), distill(here, "by_folder", "--buffer_path", str(tmp_path))
    assert_same_run(one, other)

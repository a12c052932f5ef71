"""distill_lors.py as a command on toy data."""

import json

import pytest
import torch
import yaml
from commands import METRICS, distill, read_log, toy
from sameness import lines_without_times

import distill_lors
from distill_utils import evaluate
from distill_utils.evaluation.protocols import selected_evaluation
from distill_utils.report import main as report
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet


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

    digests = {step: SyntheticSet.load(directory / f"distilled_{step}.pt").digest() for step in (0, 2, 3)}
    assert digests == {row["step"]: row["digest"] for row in results["evaluations"]}
    rows = [results[row] for row in ("random", "random_same_loss", "distilled", "full")]
    assert {row["digest"] for row in [*rows, results["selected"]]} == {digests[results["selected_step"]]}

    page = report([str(directory)]).read_text()
    assert page.startswith("<!") and "random pairs, InfoNCE" in page and "Not " not in page


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
    assert lines_without_times(first) == lines_without_times(second)
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
    means = [selected_evaluation(r)["r_mean"]["mean"] for r in results]
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
        (["--image_encoder", "resnet18"], "needs --freeze_bn, an encoder without BatchNorm"),
    ],
)
def test_bad_input_to_distillation_is_one_sentence(here, more, words):
    with pytest.raises(UserError, match=words):
        distill(here, "bad", *more)


def without_meta(directory, path):
    """distilled_2.pt as the reference writes it."""
    saved = torch.load(directory / "distilled_2.pt", weights_only=True)
    torch.save({key: value for key, value in saved.items() if key != "meta"}, path)
    return str(path)


def test_resume_from_takes_up_the_low_rank_similarity_of_a_file_of_the_reference(here, tmp_path):
    flags = ["--Iteration", "3", "--resume_from"]
    directory = distill(here, "with_meta")
    path = without_meta(directory, tmp_path / "reference.pt")
    whole = distill(here, "of_ours", *flags, str(directory / "distilled_2.pt"))
    other = distill(here, "of_the_reference", *flags, path)
    begun, ours = (SyntheticSet.load(folder / "distilled_0.pt") for folder in (other, directory))
    assert begun.similarity.kind == "lowrank"
    start = SyntheticSet.load(directory / "distilled_2.pt")
    assert all(map(torch.equal, begun.parameters(), start.parameters()))
    assert {key: value for key, value in begun.meta.items() if key in ours.meta} == {
        key: value for key, value in ours.meta.items() if key in begun.meta
    }
    assert {"loss", "temperature", "text_fingerprint", "image_encoder"} <= set(begun.meta)
    ends = [SyntheticSet.load(whole / "distilled_3.pt"), SyntheticSet.load(other / "distilled_3.pt")]
    assert all(end.similarity.left.shape == (6, 2) for end in ends)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--num_queries", "7"], "a set of --num_queries 6, not 7"),
        (["--loss_type", "InfoNCE"], "a set of --loss_type WBCE, not InfoNCE"),
        (["--temperature", "0.1"], "a set of --temperature 0.07, not 0.1"),
        (["--sim_type", "full"], "a set of --sim_type lowrank, not full"),
        (["--sim_rank", "3"], "a set of --sim_rank 2, not 3"),
        (["--alpha", "1"], "a set of --alpha 3.0, not 1.0"),
        (["--image_encoder", "test_vit"], "a set of --image_encoder test_nfnet, not test_vit"),
        (["--image_size", "40"], "images of 32 pixels, but --image_size is 40"),
    ],
)
def test_resume_from_refuses_flags_that_contradict_the_set(here, more, words):
    if not (here / "logged_files/toy/contradicted/distilled_2.pt").exists():
        distill(here, "contradicted", "--num_eval", "1")
    start = here / "logged_files/toy/contradicted/distilled_2.pt"
    with pytest.raises(UserError, match=words):
        distill(here, "contradicting", "--resume_from", str(start), *more)


def test_resume_from_refuses_an_alpha_that_does_not_give_the_similarity(here, tmp_path):
    path = without_meta(distill(here, "foreign_alpha"), tmp_path / "reference.pt")
    with pytest.raises(UserError, match="similarity_mat is not what its factors give with --alpha 1.0"):
        distill(here, "alpha", "--resume_from", path, "--alpha", "1")
    with pytest.raises(UserError, match="a set of --sim_rank 2, not 3"):
        distill(here, "rank", "--resume_from", path, "--sim_rank", "3")

"""While it distils a run measures val alone; what is best there is tested once, at the end."""

import json

import pytest
from commands import distill, read_log

from distill_utils.distillation import from_flags
from distill_utils.evaluation.protocols import METRICS, selected_evaluation
from distill_utils.runs.errors import Diverged, UserError


def measured(monkeypatch):
    """The splits, students and measurements of every evaluation of a run."""
    calls = []
    plain = from_flags.evaluate_synthetic_set

    def spied(synthetic, task, *, num_eval, splits=("val", "test"), measurements=10, **more):
        calls.append((synthetic.meta["step"], splits, num_eval, measurements))
        return plain(synthetic, task, num_eval=num_eval, splits=splits, measurements=measurements, **more)

    monkeypatch.setattr(from_flags, "evaluate_synthetic_set", spied)
    return calls


def test_val_alone_then_test_of_the_selected_step(here, monkeypatch):
    calls = measured(monkeypatch)
    directory = distill(here, "on_val", "--num_eval", "3", "--num_eval_during", "2", "--measurements", "2")
    results = json.loads((directory / "results.json").read_text())
    selected = results["selected_step"]
    assert calls[:-1] == [(step, ("val",), 2, 2) for step in (0, 2, 3)]
    assert calls[-1] == (selected, ("val", "test"), 3, 10)
    assert all("r_mean" not in evaluation for evaluation in results["evaluations"])
    assert all(
        set(point) == {"epoch", "train_loss", "val"}
        for e in results["evaluations"]
        for s in e["students"]
        for point in s["curve"]
    )
    chosen = selected_evaluation(results)
    assert (
        chosen["step"] == selected
        and chosen["r_mean"]["n"] == 3
        and set(chosen["protocols"]) == {"val", "last", "best"}
    )
    best = max(results["evaluations"], key=lambda e: e["val_r_mean"]["mean"])
    assert best["step"] == selected
    log = {line["step"]: line for line in read_log(directory)}
    for evaluation in results["evaluations"]:
        line = log[evaluation["step"]]
        assert all(line[f"Mean/{key}"] == evaluation["on_val"][key]["mean"] for key in METRICS)


def test_the_published_way_measures_test_every_time_and_nothing_more(here, monkeypatch):
    calls = measured(monkeypatch)
    flags = ["--num_eval", "2", "--num_eval_during", "2", "--measurements", "10", "--eval_test"]
    directory = distill(here, "published_way", *flags)
    assert calls == [(step, ("val", "test"), 2, 10) for step in (0, 2, 3)]
    results = json.loads((directory / "results.json").read_text())
    chosen = selected_evaluation(results)
    assert "selected" not in results and chosen["step"] == results["selected_step"]
    log = {line["step"]: line for line in read_log(directory)}
    assert log[chosen["step"]]["Mean/r_mean"] == chosen["r_mean"]["mean"]  # test, at the epoch chosen on val


def test_a_run_killed_before_its_test_is_tested_when_it_is_started_again(here, monkeypatch):
    flags = ["--Iteration", "2", "--num_eval", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(
            from_flags.Recorder, "test_selected", lambda self: (_ for _ in ()).throw(UserError("killed"))
        )
        with pytest.raises(UserError, match="killed"):
            distill(here, "untested", *flags)
    path = here / "logged_files/toy/untested/results.json"
    assert selected_evaluation(json.loads(path.read_text())) is None
    distill(here, "untested", *flags, "--resume", "auto")
    assert selected_evaluation(json.loads(path.read_text()))["r_mean"]["n"] == 1
    calls = measured(monkeypatch)
    distill(here, "untested", *flags, "--resume", "auto")
    assert not calls  # there is nothing left to do


def test_a_student_that_diverges_in_the_test_costs_the_test_alone(here, monkeypatch, capsys):
    plain = from_flags.evaluate_synthetic_set

    def diverging(*args, splits=("val", "test"), **more):
        if "test" in splits:
            raise Diverged("too high")
        return plain(*args, splits=splits, **more)

    monkeypatch.setattr(from_flags, "evaluate_synthetic_set", diverging)
    directory = distill(here, "diverging_test", "--num_eval", "1")
    results = json.loads((directory / "results.json").read_text())
    assert selected_evaluation(results) is None and len(results["evaluations"]) == 3
    assert (directory / "nearest.json").exists() and "best on val: distilled_" in capsys.readouterr().out

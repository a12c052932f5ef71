"""Runs that go on: with more iterations, from another run, after an evaluation, or not at all."""

import pytest
import torch
from commands import long_run, read_log, toy
from sameness import assert_same_run, lines_without_times

import distill_lors
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet


def test_a_finished_run_says_so_and_other_flags_are_refused(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    distill_lors.main(long_run(home, "undisturbed"))
    assert "already has its 30 outer steps" in capsys.readouterr().out
    with pytest.raises(
        UserError, match="holds a run with --lr_img 0.1, not 2.0: give another --name, or --fresh"
    ):
        distill_lors.main(long_run(home, "undisturbed", "--lr_img", "2"))


def test_more_iterations_go_on_as_if_they_had_been_asked_for_at_once(forker, home):
    argv = long_run(home, "longer")
    assert forker.run("distill_lors", [*argv, "--Iteration", "10"], home) == 0
    assert forker.run("distill_lors", argv, home) == 0
    assert_same_run(home / "logged_files/toy/undisturbed", home / "logged_files/toy/longer")


def test_what_evaluate_logged_stays_when_the_run_goes_on(forker, home):
    argv, directory = long_run(home, "evaluated"), home / "logged_files/toy/evaluated"
    assert forker.run("distill_lors", [*argv, "--Iteration", "10"], home) == 0
    evaluate = [*toy(home), "--ckpt_path", directory, "--num_eval", "1", "--epoch_eval_train", "2"]
    assert forker.run("distill_utils.evaluate", evaluate, home) == 0
    assert forker.run("distill_lors", argv, home) == 0
    log = lines_without_times(directory)
    assert [line["program"] for line in log].count("evaluate") == 1
    assert [line for line in log if line["program"] == "distill"] == lines_without_times(
        home / "logged_files/toy/undisturbed"
    )


def test_resume_from_takes_the_state_of_another_run(forker, home):
    assert forker.run("distill_lors", long_run(home, "half", "--Iteration", "10"), home) == 0
    directory = home / "logged_files/toy/elsewhere"
    assert (
        forker.run(
            "distill_lors", long_run(home, "elsewhere", "--resume_from", home / "logged_files/toy/half"), home
        )
        == 0
    )
    one, other = (
        SyntheticSet.load(folder / "distilled_30.pt")
        for folder in (home / "logged_files/toy/undisturbed", directory)
    )
    assert all(
        torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters())
    )  # the momentum went along
    assert [line["step"] for line in read_log(directory)] == list(range(10, 31))

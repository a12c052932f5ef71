"""Outer steps that are not finite: skipped, logged, stepped back from, and in the end the run's end."""

import pytest
from commands import distill, long_run, read_log

import distill_lors
from distill_utils.distillation import objectives
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import load_tensors
from distill_utils.synthetic.set import SyntheticSet


def test_a_diverging_run_says_so_and_keeps_what_was_saved(here):
    with pytest.raises(
        UserError, match="gradient of .* is not finite, 1 times in a row and after 3 restarts"
    ):
        flags = (
            "--lr_img 1e30 --lr_txt 1e30 --lr_lr 1e9 --num_eval 1 --max_bad_steps 1 --Iteration 20".split()
        )
        distill(here, "nan", *flags)
    assert SyntheticSet.load(here / "logged_files/toy/nan/distilled_0.pt").images.isfinite().all()


def poisoned(monkeypatch, steps):
    """Matchers whose image gradient is NaN at the given outer steps."""
    calls = iter(range(1, 1000))

    class Poisoned(objectives.Matcher):
        def __call__(self, synthetic, *inner_loop):
            loss = super().__call__(synthetic, *inner_loop)
            if next(calls) in steps:
                synthetic.images.grad[0] = float("nan")
            return loss

    monkeypatch.setattr(objectives, "Matcher", Poisoned)


def test_a_poisoned_step_is_skipped_and_logged(home, monkeypatch):
    monkeypatch.chdir(home)
    poisoned(monkeypatch, {2, 3})
    directory = distill_lors.main(long_run(home, "poisoned", "--Iteration", "5"))
    log = read_log(directory)
    assert [line.get("Guard/bad_steps") for line in log] == [None, None, 1, 2, None, None]
    assert (
        {"Guard/expert", "Guard/epoch"} <= set(log[2])
        and "Loss/grand" not in log[2]
        and "Loss/grand" in log[4]
    )
    assert SyntheticSet.load(directory / "distilled_5.pt").images.isfinite().all()


def test_too_many_poisoned_steps_restore_the_last_good_set_and_then_end_the_run(home, monkeypatch):
    monkeypatch.chdir(home)
    poisoned(monkeypatch, {11, 12})
    directory = distill_lors.main(long_run(home, "restored", "--max_bad_steps", "2"))
    log = read_log(directory)
    assert (log[12]["Guard/restored_step"], log[12]["Guard/step_sizes"]) == (10, 0.5) and "Loss/grand" in log[
        13
    ]
    poisoned(monkeypatch, set(range(6, 1000)))
    with pytest.raises(UserError, match="2 times in a row and after 3 restarts"):
        distill_lors.main(long_run(home, "hopeless", "--max_bad_steps", "2", "--Iteration", "100"))
    assert load_tensors(home / "logged_files/toy/hopeless/state.pt")["restores"] == 3

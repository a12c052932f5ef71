"""A signal between a step's gradient and the step itself: the run goes on to the same bytes."""

import signal

import pytest
import torch
from commands import distill, long_run
from sameness import assert_same_run

import distill_lors
from distill_utils.distillation.outer_loop import OuterLoop
from distill_utils.runs.signals import Interrupted
from distill_utils.runs.tensors import load_tensors


def test_what_a_gradient_taught_is_kept_with_its_step_alone(here, monkeypatch):
    flags = "--Iteration 6 --eval_it 6 --save_it 100".split()
    whole = distill_lors.main(long_run(here, "not_cut_off", *flags))
    argv, update = long_run(here, "cut_off", *flags), OuterLoop.update
    lengths = []

    def cut_off(loop, outcome):
        lengths.append((loop.objective.state()["length"], loop.objective.matcher.length))
        if loop.step == 3:
            raise Interrupted(signal.SIGTERM)
        update(loop, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(OuterLoop, "update", cut_off)
        with pytest.raises(Interrupted):
            distill_lors.main(argv)
    committed, learned = lengths[-1]
    assert not torch.equal(committed, learned)  # or this test would show nothing
    state = load_tensors(here / "logged_files/toy/cut_off/state.pt")
    assert state["step"] == 3 and torch.equal(state["length"], committed)
    assert_same_run(whole, distill_lors.main(argv))


def test_a_step_that_is_done_takes_its_length_along(here):
    state = load_tensors(distill(here, "length_kept") / "state.pt")
    assert state["step"] == 3 and float(state["length"]) > 0

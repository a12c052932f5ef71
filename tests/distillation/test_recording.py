"""What a Recorder does at which step: logs, looks at val, saves; at the end tests the set chosen on val."""

import json
from types import SimpleNamespace

import pytest
import torch
from builders import tiny_set

from distill_utils.distillation.recording import Recorder, is_finished
from distill_utils.evaluation.protocols import METRICS, summarise_students
from distill_utils.runs.errors import Diverged
from distill_utils.runs.processes import ALONE
from distill_utils.synthetic.set import SyntheticSet


def recall(r_mean):
    return dict.fromkeys(METRICS, r_mean)


def looked(val):
    """A result of students measured on val alone."""
    student = {"on_val": recall(val), "val_r_mean": val, "curve": [{"epoch": 1, "train_loss": 0.5}]}
    return summarise_students([student])


def on_both(val, test):
    student = {"on_val": recall(val), "val_r_mean": val, "curve": [{"epoch": 1, "train_loss": 0.5}]}
    return summarise_students([student | dict.fromkeys(("val", "last", "best"), recall(test))])


class Run:
    """A run that remembers what it is told."""

    def __init__(self, folder):
        self.directory, self.world = folder, ALONE
        self.logged, self.states, self.results = [], [], {}

    def log(self, step, values):
        self.logged.append((step, values))

    def log_panels(self, step, make):
        pass

    def save_state(self, state, logged):
        self.states.append((state["step"], logged))

    def update_results(self, values):
        self.results |= json.loads(json.dumps(values))

    def summarise(self, values):
        self.summary = values


class Loop:
    """Steps that only count; the images of the set become the step's number."""

    def __init__(self, first_step=0):
        self.synthetic = self.result = tiny_set().float()
        self.step, self.first_step, self.unlogged = first_step, first_step, {}

    def move(self):
        self.step += 1
        self.unlogged = {"Loss/grand": float(self.step)}
        with torch.no_grad():
            self.synthetic.images.fill_(self.step)

    def recorded(self):
        self.unlogged = None

    def state(self):
        return {"step": self.step}


@pytest.fixture
def record(tmp_path):
    """record(look, test, ...) -> Recorder after its run's last step."""

    def record(look, test=None, last_step=7, eval_it=3, save_it=2, evaluations=None):
        loop, run = Loop(), Run(tmp_path)
        times = {"last_step": last_step, "eval_it": eval_it, "save_it": save_it}
        known = {"evaluations": {} if evaluations is None else evaluations, "tested": None}
        recorder = Recorder(run, loop, SimpleNamespace(), look, test, **known, **times)
        with recorder.keeping():
            recorder.record()
            while loop.step < last_step:
                loop.move()
                recorder.record()
        return recorder

    return record


VAL = {0: 1.0, 3: 8.0, 6: 9.0, 7: 5.0}


def test_each_step_is_logged_and_sets_are_looked_at_and_saved_in_their_time(record):
    recorder = record(lambda synthetic: looked(VAL[synthetic.meta["step"]]))
    run = recorder.run
    assert [step for step, _ in run.logged] == list(range(8))
    assert [values.get("Loss/grand") for _, values in run.logged] == [None, *range(1, 8)]
    on_val = {step: values["Val/r_mean"] for step, values in run.logged if "Val/r_mean" in values}
    assert on_val == VAL == {step: values["Mean/r_mean"] for step, values in run.logged if step in VAL}
    assert sorted(path.name for path in run.directory.iterdir()) == [f"distilled_{n}.pt" for n in VAL]
    assert run.states == [(n, n) for n in (0, 2, 3, 4, 6, 7)]
    assert [evaluation["step"] for evaluation in run.results["evaluations"]] == list(VAL)
    assert run.results["selected_step"] == 6


def test_what_is_tested_in_the_end_is_the_set_that_was_best_on_val(record):
    seen = []

    def test(synthetic):
        seen.append(float(synthetic.images.detach().mean()))
        return on_both(9.5, 33.0)

    recorder = record(lambda synthetic: looked(VAL[synthetic.meta["step"]]), test)
    assert recorder.test_selected()["r_mean"]["mean"] == 33.0
    assert seen == [6.0]  # not the last one, which the loop holds
    assert (recorder.run.results["selected"]["step"], recorder.run.summary["Test/r_mean"]) == (6, 33.0)
    recorder.test_selected()
    assert len(seen) == 1
    state = {"step": 7, "unlogged": None, "evaluations": recorder.evaluations, "tested": recorder.tested}
    assert (
        is_finished(state, 7) and not is_finished(state, 8) and not is_finished(state | {"tested": None}, 7)
    )
    assert not is_finished(state | {"unlogged": {}}, 7)


def test_where_test_was_measured_every_time_nothing_is_trained_in_the_end(record):
    test = {0: 50.0, 3: 2.0, 6: 3.0, 7: 40.0}

    def look(synthetic):
        return on_both(VAL[synthetic.meta["step"]], test[synthetic.meta["step"]])

    recorder = record(look, test=None)
    assert recorder.test_selected()["r_mean"]["mean"] == 3.0  # of step 6, best on val though not on test
    assert dict(recorder.run.logged)[6]["Mean/r_mean"] == 3.0
    state = {"step": 7, "unlogged": None, "evaluations": recorder.evaluations}
    assert is_finished(state, 7)


def test_a_set_whose_students_diverge_is_kept_without_a_result(record):
    def look(synthetic):
        if synthetic.meta["step"] == 6:
            raise Diverged("too high")
        return looked(VAL[synthetic.meta["step"]])

    recorder = record(look)
    assert recorder.run.results["selected_step"] == 3 and sorted(recorder.evaluations) == [0, 3, 7]
    assert dict(recorder.run.logged)[6] == {"Loss/grand": 6.0, "Guard/students_diverged": 1}
    assert float(SyntheticSet.load(recorder.run.directory / "distilled_6.pt").images.detach().mean()) == 6.0


def test_a_run_whose_first_students_diverge_ends(record):
    def look(synthetic):
        raise Diverged("too high")

    with pytest.raises(Diverged):
        record(look)


def test_what_ends_a_run_early_saves_its_state(record):
    def look(synthetic):
        if synthetic.meta["step"] == 3:
            raise KeyboardInterrupt
        return looked(1.0)

    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", lambda self, state, logged: states.append((state["step"], logged)))
        with pytest.raises(KeyboardInterrupt):
            record(look)
    assert states[-1] == (3, 2)  # step 3 is done, and its line still to be written

"""Students that go on with the sets of further phases (`--then`)."""

import pytest
from commands import distill, toy

from distill_utils import evaluate
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet

QUICK = ["--num_eval", "2", "--epoch_eval_train", "2", "--Iteration", "1"]


@pytest.fixture
def phases(here):
    return distill(here, "phase1", *QUICK), distill(here, "phase2", *QUICK, "--seed", "1")


def rows_of(here, run, *more):
    return evaluate.main([*toy(here), *QUICK[:4], "--ckpt_path", str(run), *more])


def test_the_pairs_and_epochs_of_all_phases_count(here, phases):
    first, second = map(SyntheticSet.load, phases)
    buffers = ["--baselines", "--rates", "0.1", "--buffer_path", f"{here}/buffers"]
    rows = rows_of(here, phases[0], "--then", str(phases[1]), *buffers)
    row, random = rows["distilled"], rows["random"]
    assert (row["pairs"], row["epochs"], row["then"]) == (12, 4, [second.digest()])
    assert row["storage"] == pytest.approx(first.storage() + second.storage())
    assert (random["pairs"], random["epochs"]) == (12, 2)  # as many pairs, in one phase
    assert [point["epoch"] for point in row["students"][0]["curve"]][-1] == 4


def test_one_phase_is_no_phases_and_another_order_is_another_result(here, phases):
    plain, *others = (
        rows_of(here, phases[0], *more)["distilled"]
        for more in ([], ["--then", str(phases[1])], ["--then", str(phases[1]), "--restart_rates", "true"])
    )
    alone = rows_of(here, phases[0])["distilled"]
    assert alone["students"] == plain["students"] and "then" not in plain
    curves = [other["students"][0]["curve"] for other in others]
    half = [[point for point in curve if point["epoch"] <= 2] for curve in curves]
    assert half[0] == half[1] == plain["students"][0]["curve"]
    assert curves[0][-1]["train_loss"] != curves[1][-1]["train_loss"]


def test_a_phase_that_is_not_there_or_does_not_fit_is_a_sentence(here, phases):
    with pytest.raises(UserError, match="nowhere"):
        rows_of(here, phases[0], "--then", "nowhere")

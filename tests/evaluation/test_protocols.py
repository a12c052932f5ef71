"""Which epoch and which step a number belongs to, on curves made by hand whose val and test disagree."""

import math

import pytest

from distill_utils.distillation.recording import evaluation_log, selected_step
from distill_utils.evaluation.protocols import (
    METRICS,
    choose_epochs,
    selected_evaluation,
    summarise,
    summarise_runs,
    summarise_students,
)


def recall(r_mean):
    return {key: r_mean + n / 10 for n, key in enumerate(METRICS[:-1])} | {"r_mean": r_mean}


def curve(*points):
    """Of (r_mean on val, r_mean on test) after epochs 10, 20, ..."""
    return [
        {"epoch": 10 * n, "train_loss": 1 / n, "val": recall(val), "test": recall(test)}
        for n, (val, test) in enumerate(points, 1)
    ]


def test_the_epoch_is_chosen_on_val_and_the_number_is_tests():
    chosen = choose_epochs(curve((1, 7), (5, 3), (4, 9), (2, 6)))
    assert chosen["val"] == recall(3) and chosen["val_r_mean"] == 5
    assert chosen["last"] == recall(6)
    assert chosen["best"] == recall(9)


def test_of_equal_epochs_the_earliest_counts():
    chosen = choose_epochs(curve((1, 7), (5, 3), (5, 9), (2, 9)))
    assert chosen["val"] == recall(3)


def test_a_deviation_is_that_of_a_sample():
    assert summarise([1.0, 3.0, 8.0]) == {"mean": 4.0, "std": pytest.approx(math.sqrt(26 / 2)), "n": 3}
    assert summarise([2.0]) == {"mean": 2.0, "std": 0.0, "n": 1}


def students():
    """Two whose protocols give 3 and 5, 6 and 8, 9 and 19."""
    return [
        choose_epochs(curve((1, 7), (5, 3), (4, 9), (2, 6))) | {"curve": curve((1, 2))},
        choose_epochs(curve((9, 5), (5, 19), (4, 8))) | {"curve": curve((1, 2))},
    ]


def test_the_headline_over_students_is_the_epoch_chosen_on_val():
    summary = summarise_students(students())
    assert summary["r_mean"] == {"mean": 4.0, "std": pytest.approx(math.sqrt(2)), "n": 2}
    assert summary["img_r5"]["mean"] == pytest.approx(4.1)
    assert [summary["protocols"][name]["r_mean"]["mean"] for name in ("val", "last", "best")] == [4, 7, 14]
    assert summary["val_r_mean"]["mean"] == 7
    log = evaluation_log(summary)
    assert (log["Mean/r_mean"], log["Last/r_mean"], log["Best/r_mean"], log["Val/r_mean"]) == (4, 7, 14, 7)
    assert log["Std/r_mean"] == pytest.approx(math.sqrt(2)) and log["Mean/img_r5"] == pytest.approx(4.1)


def test_a_distillation_is_one_value_however_many_students_it_had():
    runs = [summarise_students(students()), summarise_students(students()[:1])]
    over = summarise_runs(runs)
    assert over["r_mean"] == {"mean": 3.5, "std": pytest.approx(math.sqrt(0.5)), "n": 2}
    assert over["protocols"]["best"]["r_mean"]["mean"] == (14 + 9) / 2
    assert over["protocols"]["last"]["r_mean"]["mean"] == (7 + 6) / 2


def evaluations(*points):
    """{step: result} of (r_mean on val, r_mean on test) at steps 0, 50, ..."""
    return {
        50 * n: summarise_students([choose_epochs(curve(point)) | {"curve": curve(point)}])
        for n, point in enumerate(points)
    }


def test_the_outer_step_is_chosen_on_val():
    assert selected_step(evaluations((1, 9), (6, 2), (5, 30), (3, 4))) == 50


def test_of_equal_outer_steps_the_earliest_counts():
    found = evaluations((1, 9), (6, 2), (6, 30), (3, 4))
    assert selected_step(dict(reversed(found.items()))) == 50


def test_a_runs_evaluation_is_that_of_its_selected_step():
    listed = [{"step": step} | result for step, result in evaluations((1, 9), (6, 2), (5, 30)).items()]
    assert selected_evaluation({"selected_step": 50, "evaluations": listed})["r_mean"]["mean"] == 2
    assert selected_evaluation({"evaluations": listed}) is None

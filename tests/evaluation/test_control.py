"""The row `identity`: a control distilled with S = I, beside the set and judged as it is."""

import json

import pytest
from commands import distill, toy

from distill_utils import evaluate
from distill_utils.runs.errors import UserError

QUICK = ["--num_eval", "2", "--epoch_eval_train", "2"]


@pytest.fixture
def run(here):
    return distill(here, "with_s", "--Iteration", "1", *QUICK)


def rows_of(here, run, *more):
    return evaluate.main([*toy(here), *QUICK, "--ckpt_path", str(run), *more])


def test_the_control_has_the_numbers_that_it_has_alone(here, run):
    control = distill(here, "without", "--sim_type", "identity", "--Iteration", "1", *QUICK)
    rows = rows_of(here, run, "--identity", str(control))
    alone = rows_of(here, control)["distilled"]
    assert rows["identity"]["r_mean"] == alone["r_mean"] != rows["distilled"]["r_mean"]
    assert rows["identity"]["lr_img"] == alone["lr_img"]
    assert rows["identity"]["digest"] == rows["distilled"]["digest"]  # it stands beside this set
    assert json.loads((run / "results.json").read_text())["identity"] == rows["identity"]


def test_what_is_no_control_is_refused(here, run):
    with pytest.raises(UserError, match="has a similarity of kind lowrank and loss WBCE: the control of"):
        rows_of(here, run, "--identity", str(run))
    flags = ["--sim_type", "identity", "--loss_type", "KL", "--Iteration", "1", *QUICK]
    with pytest.raises(UserError, match="kind identity and loss KL: .* has S = I and loss WBCE"):
        rows_of(here, run, "--identity", str(distill(here, "other_loss", *flags)))
    smaller = distill(
        here,
        "fewer",
        "--sim_type",
        "identity",
        "--num_queries",
        "4",
        "--mini_batch_size",
        "4",
        "--Iteration",
        "1",
        *QUICK,
    )
    with pytest.raises(UserError, match="holds 4 pairs, .* 6"):
        rows_of(here, run, "--identity", str(smaller))

"""Real pairs get what a distilled set gets: learning rates of their own, chosen on val."""

import json

import pytest
from commands import distill, toy

from distill_utils import coreset, evaluate
from distill_utils.evaluation.baselines import RATES, at_best_rates
from distill_utils.runs.errors import Diverged

QUICK = "--num_eval 2 --epoch_eval_train 2 --num_workers 0 --device cpu".split()


def on_val(value):
    return {"val_r_mean": {"mean": value}}


def on_test(value):
    return {"r_mean": {"mean": value}}


def test_rates_are_chosen_on_val_and_only_those_chosen_are_tested():
    val = {(0.1, 0.1): 5.0, (0.3, 0.3): 6.0, (0.02, 0.7): 4.0}
    test = {(0.1, 0.1): 9.0, (0.3, 0.3): 1.0, (0.02, 0.7): 20.0}
    tested = []

    def on_the_test(lrs):
        tested.append(lrs)
        return on_test(test[lrs])

    chosen = at_best_rates(lambda lrs: on_val(val[lrs]), on_the_test, val, "pairs")
    assert chosen["r_mean"]["mean"] == 1.0 and tested == [(0.3, 0.3)]  # best on val, though worst on test
    told = [(row["lr_img"], row["lr_txt"], row["val_r_mean"]) for row in chosen["rates"]]
    assert told == [(*lrs, value) for lrs, value in val.items()]


def diverges_above(limit, result):
    def evaluate_at(lrs):
        if lrs[0] > limit:
            raise Diverged("too high")
        return result(lrs[0])

    return evaluate_at


def test_rates_that_diverge_are_passed_over_and_all_of_them_are_an_error():
    look, test = diverges_above(0.2, on_val), diverges_above(0.1, on_test)
    chosen = at_best_rates(
        look, test, [(0.3, 0.3), (0.2, 0.2), (0.1, 0.1), (0.1, 0.1), (0.05, 0.05)], "pairs"
    )
    assert chosen["r_mean"]["mean"] == 0.1  # the next on val, where a further student diverges at the best
    assert [row.get("diverged", False) for row in chosen["rates"]] == [True, True, False, False]
    with pytest.raises(Diverged, match="all learning rates"):
        at_best_rates(look, test, [(0.3, 0.3), (0.2, 0.2)], "pairs")


def test_random_pairs_choose_under_each_loss_and_every_row_is_saved_when_it_is_done(here, monkeypatch):
    directory = distill(here, "beside", "--num_eval", "1", "--Iteration", "1", "--eval_it", "1")
    flags = [*QUICK, "--ckpt_path", str(directory), "--baselines", "--buffer_path", f"{here}/buffers"]
    rows = evaluate.main([*flags, "--rates", "0.01,0.2"])
    for name, loss in (("random", "InfoNCE"), ("random_same_loss", "WBCE")):
        assert rows[name]["loss"] == loss and rows[name]["r_mean"]["n"] == 2
        tried = [(row["lr_img"], row["lr_txt"]) for row in rows[name]["rates"]]
        assert tried[:2] == [(0.01, 0.01), (0.2, 0.2)] and len(tried) == 3  # and the learned ones
        best = max(rows[name]["rates"], key=lambda row: row.get("val_r_mean", -1))
        assert rows[name]["lr_img"] == best["lr_img"]
    assert "rates" not in rows["distilled"] and rows["full"]["r_mean"]["n"] == 2

    (directory / "results.json").unlink()
    monkeypatch.setattr(evaluate, "random_baseline", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(flags)
    assert "distilled" in json.loads((directory / "results.json").read_text())


def test_a_coreset_chooses_its_rates_too(here):
    path = coreset.main(["random", *toy(here), "--num_queries", "6", "--name", "choosing"])
    row = evaluate.main(["--ckpt_path", str(path), *QUICK])["distilled"]
    assert [tried["lr_img"] for tried in row["rates"]] == list(RATES)
    best = max(row["rates"], key=lambda tried: tried.get("val_r_mean", -1))
    assert row["lr_img"] == best["lr_img"] and row["r_mean"]["n"] == 2 == len(row["students"])


def test_experts_without_results_leave_their_row_out_in_a_sentence(here, tmp_path, capsys):
    directory = distill(here, "published", "--num_eval", "1", "--Iteration", "1", "--eval_it", "1")
    flags = [
        *QUICK,
        "--ckpt_path",
        str(directory),
        "--baselines",
        "--rates",
        "0.1",
        "--buffer_path",
        str(tmp_path),
    ]
    rows = evaluate.main(flags)
    assert "full" not in rows and "random" in rows
    assert "holds no results of experts: the row of the full data is left out" in capsys.readouterr().out

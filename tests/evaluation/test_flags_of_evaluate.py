"""Each flag of evaluate arrives at the students it is meant for; random pairs are drawn anew for each."""

import json

import pytest
import torch
from commands import toy

from distill_utils import coreset, evaluate
from distill_utils.evaluation.protocols import METRICS, summarise_students
from distill_utils.runs.seeds import derive_seed
from distill_utils.synthetic.set import SyntheticSet


@pytest.fixture(scope="module")
def distilled(home, tmp_path_factory):
    """A set with learned rates, as a file; its coreset is told apart by its meta."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        path = coreset.main(["random", *toy(home), "--num_queries", "6", "--name", "reached"]).resolve()
    synthetic = SyntheticSet.load(path)
    del synthetic.meta["coreset"]
    with torch.no_grad():
        synthetic.lr_img.fill_(0.25)
        synthetic.lr_txt.fill_(0.5)
    path = tmp_path_factory.mktemp("reached") / "distilled_0.pt"
    synthetic.save(path)
    return path


@pytest.fixture
def calls(monkeypatch):
    """[(set, options)] of every evaluation; a higher image rate is better on val, worse on test."""
    calls = []

    def evaluated(synthetic, *, num_eval, lrs=None, **options):
        calls.append((synthetic, {"num_eval": num_eval, "lrs": lrs} | options))
        rate = (lrs or (0.0,))[0]
        test, student = dict.fromkeys(METRICS, 10 - rate), {"val_r_mean": rate, "seed": options["seed"]}
        student |= {"on_val": dict.fromkeys(METRICS, rate), "val": test, "last": test, "best": test}
        trained = {"loss": options["loss_type"], "lr_img": rate, "pairs": len(synthetic)}
        return summarise_students([student] * num_eval) | trained

    monkeypatch.setattr(evaluate, "evaluate_synthetic_set", evaluated)
    return calls


def run(home, path, *flags):
    return evaluate.main([*toy(home), "--ckpt_path", str(path), *flags])


def test_flags_of_the_students(here, distilled, calls):
    words = "--epoch_eval_train 6 --batch_eval 5 --loss_type KL --precision bf16 --num_eval 4 --seed 3"
    run(here, distilled, *words.split(), "--breakdown", "false")
    ((synthetic, told),) = calls
    assert torch.equal(synthetic.images, SyntheticSet.load(distilled).images)
    assert (told["epochs"], told["batch_size"], told["loss_type"]) == (6, 5, "KL")
    assert (told["precision"], told["num_eval"], told["seed"]) == ("bf16", 4, derive_seed(3, "evaluate"))
    assert told["lrs"] is None and told["temperature"] == 0.07  # both are the set's own


def test_the_loss_and_the_temperature_are_those_of_the_set(here, distilled, calls, tmp_path):
    saved = torch.load(distilled, weights_only=True)
    path = tmp_path / "distilled_0.pt"
    torch.save(saved | {"meta": saved["meta"] | {"loss": "CWCL", "temperature": 0.3}}, path)
    run(here, path)
    assert (calls[0][1]["loss_type"], calls[0][1]["temperature"]) == ("CWCL", 0.3)


def test_random_pairs_are_drawn_and_seeded_anew_and_choose_their_rates_on_val(here, distilled, calls):
    rows = run(here, distilled, "--num_eval", "3", "--rates", ".1,.3", "--baselines", "--loss_type", "KL")
    random = [call for call in calls if call[1]["num_eval"] == 1]
    assert len(random) == 2 * (
        3 * 2 + 3
    )  # losses, rates looked at with two draws each, and one tested with all
    rates = [(0.1, 0.1), (0.3, 0.3), (0.25, 0.5)]
    for number, loss in enumerate(("InfoNCE", "KL")):
        tried = random[9 * number : 9 * (number + 1)]
        asked = [(told["lrs"], told.get("splits")) for _, told in tried]
        assert asked == [(lrs, ("val",)) for lrs in rates for _ in range(2)] + [((0.3, 0.3), None)] * 3
        assert {told["loss_type"] for _, told in tried} == {loss}
        draws = [tuple(synthetic.meta["source_captions"]) for synthetic, _ in tried]
        assert len(set(draws)) == 3 and draws[:2] == draws[2:4] == draws[4:6] == draws[6:8]
        assert len({told["seed"] for _, told in tried}) == 3
        assert all(len(synthetic) == 6 for synthetic, _ in tried)
    for row, loss in (("random", "InfoNCE"), ("random_same_loss", "KL")):
        assert (rows[row]["lr_img"], rows[row]["loss"], rows[row]["r_mean"]["n"]) == (0.3, loss, 3)
    results = json.loads((distilled.parent / "results.json").read_text())
    assert {"distilled", "random", "random_same_loss", "full"} <= set(results)


def test_what_is_distilled_keeps_its_learned_rates_and_a_coreset_chooses(here, distilled, calls, tmp_path):
    run(here, distilled, "--rates", ".1,.3")
    assert [told["lrs"] for _, told in calls] == [None]
    calls.clear()
    synthetic = SyntheticSet.load(distilled)
    synthetic.meta["coreset"] = "random"
    synthetic.save(tmp_path / "distilled_0.pt")
    rows = run(here, tmp_path / "distilled_0.pt", "--rates", ".1,.3")
    assert [told["lrs"] for _, told in calls] == [(0.1, 0.1), (0.3, 0.3), (0.3, 0.3)]
    assert [told.get("splits") for _, told in calls] == [("val",), ("val",), None]
    assert rows["distilled"]["lr_img"] == 0.3

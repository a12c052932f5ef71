"""Numbers belong to sets: report, export and compare show the rows of the set they show, and no others."""

import json

import pytest
import torch

from distill_utils import compare, export, report
from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import IdentitySimilarity


def row(value, **more):
    cells = {metric: {"mean": value, "std": 0.5, "n": 3} for metric in METRICS}
    return cells | {"protocols": dict.fromkeys(PROTOCOLS, cells)} | more


@pytest.fixture
def run(tmp_path):
    """A folder with the sets of steps 5 and 9, the latter best on val: (folder, {step: set})."""
    torch.manual_seed(0)
    sets = {}
    for step in (5, 9):
        meta = {"step": step, "dataset": "toy"}
        sets[step] = SyntheticSet(torch.rand(2, 3, 4, 4), torch.rand(2, 2), IdentitySimilarity(2), meta=meta)
        sets[step].save(tmp_path / f"run/distilled_{step}.pt")
    return tmp_path / "run", sets


def shown(folder, results, capsys, value="11.1"):
    """Whether report, export and compare show a number of results.json; compare may refuse in a sentence."""
    (folder / "results.json").write_text(json.dumps({"selected_step": 9} | results))
    page = report.main([str(folder)]).read_text()
    out = folder.parent / f"set_{len(list(folder.parent.iterdir()))}"
    export.main(["--ckpt_path", str(folder), "--out", str(out)])
    card = (out / "README.md").read_text()
    capsys.readouterr()
    try:
        compare.main([str(folder)])
        table = capsys.readouterr().out
    except UserError as error:
        table = ""
        assert "distilled_9.pt" in str(error)
    assert ("Not evaluated" in page) == ("not evaluated" in card) == ("±" not in card)
    return [value in text for text in (page, card, table)]


def test_a_row_of_the_set_is_shown(run, capsys):
    folder, sets = run
    digest = sets[9].digest()
    for mine in ({"file": "distilled_9.pt"}, {"file": "distilled_9.pt", "digest": digest}, {}):
        assert shown(folder, {"distilled": row(11.1, **mine)}, capsys) == [True] * 3


def test_a_row_of_another_set_is_not(run, capsys):
    folder, sets = run
    foreign = ({"file": "distilled_5.pt"}, {"file": "distilled_9.pt", "digest": sets[5].digest()})
    for mine in (*foreign, {"file": None}, {"file": ["distilled_9.pt"]}, {"digest": 3}):
        assert shown(folder, {"distilled": row(11.1, **mine)}, capsys) == [False] * 3, mine
    page = (folder / "report.html").read_text()
    assert "Not shown, being of another set than distilled_9.pt" in page


def test_a_run_that_went_on_drops_what_is_out_of_date(run, capsys):
    """Rows of step 5, when that was best on val, beside the run's own later evaluation of step 9."""
    folder, sets = run
    old = {name: row(33.3, file="distilled_5.pt") for name in ("random", "distilled", "full")}
    later = {"evaluations": [{"step": 5} | row(33.3), {"step": 9} | row(11.1)]}
    assert shown(folder, old | later, capsys) == [True] * 3
    assert shown(folder, old | later, capsys, "33.3") == [False] * 3


def test_old_rows_without_a_file_are_taken_where_all_is_of_one_set(run, capsys):
    folder, sets = run
    assert shown(folder, {"distilled": row(11.1)}, capsys) == [True] * 3
    mixed = {"random": row(11.1), "distilled": row(22.2, file="distilled_5.pt")}
    assert shown(folder, mixed, capsys) == [False] * 3
    assert shown(folder, mixed | {"selected_step": 5}, capsys)[:2] == [True, True]


def test_a_step_that_was_looked_at_on_val_alone_is_not_evaluated(run, capsys):
    folder, sets = run
    on_val = {"step": 9, "on_val": row(11.1), "val_r_mean": {"mean": 11.1, "std": 0.5, "n": 3}}
    assert shown(folder, {"evaluations": [on_val]}, capsys) == [False] * 3
    tested = {"evaluations": [on_val], "selected": {"step": 9} | row(11.1)}
    assert shown(folder, tested, capsys) == [True] * 3
    tested["selected"]["digest"] = sets[5].digest()
    assert shown(folder, tested, capsys) == [False] * 3


def test_a_set_that_is_exported_from_its_file_has_its_own_numbers(run):
    folder, sets = run
    results = {"distilled": row(33.3, file="distilled_9.pt"), "evaluations": [{"step": 5} | row(11.1)]}
    (folder / "results.json").write_text(json.dumps({"selected_step": 9} | results))
    out = export.main(["--ckpt_path", str(folder / "distilled_5.pt"), "--out", str(folder.parent / "five")])
    card = (out / "README.md").read_text()
    assert "this set, while distilling, val | 11.1" in card and "33.3" not in card


def test_numbers_on_other_data_say_so(run):
    folder, sets = run
    transfer = row(11.1, file="distilled_9.pt", dataset="flickr8k", distilled_from="toy")
    (folder / "results.json").write_text(json.dumps({"selected_step": 9, "distilled": transfer}))
    assert "distilled, on flickr8k" in report.main([str(folder)]).read_text()
    out = export.main(["--ckpt_path", str(folder), "--out", str(folder.parent / "out")])
    assert "this set, on flickr8k, val" in (out / "README.md").read_text()


def test_compare_needs_no_sets(run, capsys):
    folder, sets = run
    for file in folder.glob("*.pt"):
        file.unlink()
    mine = row(11.1, file="distilled_9.pt", digest="0" * 16)
    (folder / "results.json").write_text(json.dumps({"selected_step": 9, "distilled": mine}))
    compare.main([str(folder)])
    assert "11.1" in capsys.readouterr().out

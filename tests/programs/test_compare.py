"""compare: runs that differ by their seed are one row."""

import json

import pytest
from commands import METRICS

from distill_utils import compare
from distill_utils.runs.errors import UserError


def test_runs_that_differ_by_their_seed_are_one_row(tmp_path, capsys):
    def result(value):
        cells = {key: {"mean": value, "std": 1.0, "n": 3} for key in METRICS}
        return cells | {
            "protocols": {protocol: cells for protocol in ("val", "last", "best")},
            "storage": 50.123,
        }

    for name, results in {
        "a_seed0": {"distilled": result(10.0), "evaluations": [], "selected_step": 3},
        "a_seed1": {
            "selected_step": 20,
            "evaluations": [{"step": 0} | result(1.0), {"step": 20} | result(14.0)],
        },
        "b": {"distilled": result(5.0) | {"file": "distilled_7.pt"}, "selected_step": 7},
        "c": {},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    rows = compare.main([str(tmp_path / name) for name in ("a_seed0", "b", "a_seed1")])
    assert list(rows) == ["a", "b"] and rows["a"]["r_mean"] == {
        "mean": 12.0,
        "std": pytest.approx(8**0.5),
        "n": 2,
    }
    assert "12.0 ± 2.8" in capsys.readouterr().out
    compare.main([str(tmp_path / "b"), "--markdown"])
    assert "| b | 5.0 ± 0.0 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no results.json with a result"):
        compare.main([str(tmp_path / "c")])

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
    blocks = compare.main([str(tmp_path / name) for name in ("a_seed0", "b", "a_seed1")])
    (rows,) = blocks.values()
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


def test_protocols_and_test_data_are_not_mixed(tmp_path, capsys):
    cells = {key: {"mean": 5.0, "std": 1.0, "n": 3} for key in METRICS}
    row = cells | {"protocols": {protocol: cells for protocol in ("val", "last", "best")}}
    about = {
        "whole_seed0": {"protocol": "P1", "dataset": "flickr"},
        "head_seed0": {"image_trainable": False, "dataset": "flickr"},  # as earlier versions said it
        "head_seed1": {"protocol": "P2", "dataset": "flickr"},
        "moved": {"protocol": "P2", "dataset": "coco"},
    }
    for name, said in about.items():
        (tmp_path / name).mkdir()
        results = {"distilled": row | said, "selected_step": 3}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    blocks = compare.main([str(tmp_path / name) for name in about])
    assert {block: list(rows) for block, rows in blocks.items()} == {
        ("P1", "flickr"): ["whole"],
        ("P2", "flickr"): ["head"],
        ("P2", "coco"): ["moved"],
    }
    assert blocks["P2", "flickr"]["head"]["r_mean"]["n"] == 2
    assert "protocol P2, coco" in capsys.readouterr().out

"""The benchmarks run whole at small sizes, and what they print can be read back."""

import json
import sys

import numpy as np
import pytest
import torch

from distill_utils import benchmark
from distill_utils.benchmarks import cells, matching, retrieval, vas
from distill_utils.evaluation.retrieval import recall_from_scores
from distill_utils.runs.errors import UserError

SMALL = [
    *"--image_encoder test_nfnet --image_size 32 --toy_size 24,2,3".split(),
    *"--repeats 1 --num_workers 0 --device cpu".split(),
]


@pytest.fixture
def in_process(monkeypatch):
    """Cells in this process: starting one takes seconds, and `in_own_process` has a test of its own."""
    monkeypatch.setattr(cells, "in_own_process", lambda function, *args: function(*args))


def run(capsys, *flags):
    """The result and what the last line of the output says."""
    result = benchmark.main([*flags])
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["benchmark"] == flags[0]
    assert torch.__version__.startswith(printed["machine"]["torch"])  # which may add "+cu132"
    return result, printed


def test_matching(in_process, capsys, tmp_path):
    names = "reference,unroll,ours/full/finite,ours/truncated/forward"
    flags = "--num_queries 6 --mini_batch_size 4 --expert_steps 1 --sim_rank 2 --whole".split()
    _, printed = run(
        capsys, "matching", *SMALL, *flags, "--cells", names, "--figure", f"{tmp_path}/figure.svg"
    )
    figure = (tmp_path / "figure.svg").read_text()
    assert figure.startswith("<?xml")
    found = {
        matching.cell_name(cell["scheme"], cell["gradient"], cell["second_order"]): cell
        for cell in printed["cells"]
    }
    assert set(found) == set(names.split(","))
    for name, cell in found.items():
        assert cell["seconds"] > 0 and cell["peak_mb"] > 0 and cell["n"] == 1
        assert set(cell["groups"]) == {"pixels", "texts", "similarity", "lrs"}
        most = 2e-2 if name.endswith("finite") else 1e-4
        assert cell["cosine"] > 0.9999 and 0 < cell["relative_error"] < most
    assert printed["training"]["seconds"] > 0
    assert printed["whole"]["ratio"] > 0 and 0 <= printed["whole"]["ours"]["outside_share"] < 1


def test_matching_of_a_frozen_tower(in_process, capsys):
    names = "every-step/truncated/finite,ours/truncated/finite"
    flags = [*SMALL, *"--num_queries 6 --mini_batch_size 4 --expert_steps 1 --sim_rank 2".split()]
    _, printed = run(capsys, "matching", *flags, "--cells", names, "--image_trainable", "false")
    every, once = printed["cells"]
    assert every["scheme"] == "every-step" and every["seconds"] > 0 and once["seconds"] > 0
    assert every["cosine"] > 0.9999 < once["cosine"]
    with pytest.raises(UserError, match="every-step is of a frozen image tower"):
        benchmark.main(["matching", *flags, "--cells", names])


def test_retrieval(in_process, capsys):
    _, printed = run(capsys, "retrieval", "--gallery", "60,250", "--repeats", "1", "--device", "cpu")
    assert printed["identical"] and printed["naive_seconds"] > 0


@pytest.mark.parametrize("n, m, levels", [(1, 1, 1), (7, 20, 3), (40, 90, 1000)])
def test_the_naive_loop_agrees_with_recall_from_scores(n, m, levels):
    for seed in range(5):
        torch.manual_seed(seed)
        txt2img = torch.cat([torch.arange(n), torch.randint(n, (m - n,))])
        scores = torch.randint(levels, (n, m)).float()
        assert retrieval.naive_recall(scores, txt2img) == pytest.approx(recall_from_scores(scores, txt2img))


def test_trajectory(in_process, capsys):
    _, printed = run(capsys, "trajectory", *SMALL)
    assert printed["sample"]["seconds"] > 0 and printed["snapshot_bytes"] > 1e5
    assert printed["sample"]["bytes_read"] <= printed["whole"]["bytes_read"]


def test_evaluate(in_process, capsys, tmp_path):
    roots = [f"--{folder}={tmp_path}" for folder in ("image_root", "ann_root", "checkpoint_dir")]
    _, printed = run(capsys, "evaluate", *SMALL, *roots, "--text_encoder", "toy_bert")
    assert printed["images"] == 3 and printed["texts"] == 15 and printed["ratio"] > 0


def test_vas(in_process, capsys, monkeypatch):
    monkeypatch.setattr(vas, "_WIDTH", 16)
    monkeypatch.setattr(vas, "_FILE_ROWS", 1300)
    monkeypatch.setattr(vas, "_ROUNDS", 4)
    _, printed = run(capsys, "vas", "--pool", "100,3000", "--device", "cpu")
    for found in printed["pools"].values():
        assert set(found) == {"in memory", "static", "bounded", "every row"}
        assert found["static"]["same_set"] and found["bounded"]["same_set"]
        assert all(cell["peak_mb"] > 0 for cell in found.values())
    assert printed["pools"]["3000"]["bounded"]["scored"] <= printed["pools"]["3000"]["every row"]["scored"]


def test_the_peak_of_a_command_is_its_own_and_not_that_of_who_measures_it():
    ballast = np.ones(500 << 20, np.uint8)
    assert vas.measured([sys.executable, "-c", "pass"])["peak_mb"] < 100 < ballast.nbytes >> 20
    of_200_mb = "large = b'1' * (200 << 20)"
    assert 200 < vas.measured([sys.executable, "-c", of_200_mb])["peak_mb"] < 300
    with pytest.raises(RuntimeError, match="ended with status 3"):
        vas.measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_unknown_cells_are_named():
    with pytest.raises(UserError, match="'ours/half' is unknown"):
        benchmark.main(["matching", "--cells", "ours/half", "--device", "cpu"])

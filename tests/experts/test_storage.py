"""What experts take on the disk: told before any is trained, and less of it on demand."""

from functools import partial

import pytest
import torch
from commands import EXPERTS, EXPERTS_FOLDER, toy

import buffer
from distill_utils.experts import folder
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.runs.errors import UserError
from networks import build_model
from networks.weights import Weights


def test_experts_that_would_not_fit_are_refused_before_any_is_trained(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(
        UserError, match="2 experts need .* GiB while they train, but .* 0.00 GiB free: see --keep_snapshots"
    ):
        buffer.main([*toy(home), *EXPERTS, "--buffer_path", f"{tmp_path}/buffers"])


def test_the_published_experts_fit_in_what_is_promised():
    model = build_model("nfnet", 768, pretrained=False, checkpoint_dir="none")
    size = partial(folder.stored_bytes, model, 20)
    gib = [size(11, torch.float32, False), size(3, torch.float32, True), size(3, torch.bfloat16, True)]
    assert [round(value / 2**30, 1) for value in gib] == [32.7, 6.6, 3.3]


def test_compact_buffers_hold_the_same_snapshots_in_less(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    whole = ExpertTrajectories(home / "buffers" / EXPERTS_FOLDER)

    def size(folder):
        return sum(path.stat().st_size for path in folder.glob("*.pt"))

    for dtype, tolerance, share in (("float32", 0, 0.5), ("bfloat16", 2**-8, 0.25)):
        made = tmp_path / dtype / EXPERTS_FOLDER
        flags = ["--buffer_dtype", dtype, "--keep_snapshots", "2", "--buffer_path", f"{tmp_path}/{dtype}"]
        buffer.main([*toy(home), *EXPERTS, *flags])
        compact = ExpertTrajectories(made)
        for n in range(2):
            for found, wanted in zip(compact.pair(n, Weights(0, 0), 1), whole.pair(n, Weights(0, 0), 1)):
                for a, b in zip(found, wanted):
                    assert a.dtype == torch.float32 and bool(((a - b).abs() <= tolerance * b.abs()).all())
        assert size(made) < share * size(home / "buffers" / EXPERTS_FOLDER)
    assert "2 experts of 2 snapshots: 0." in capsys.readouterr().out

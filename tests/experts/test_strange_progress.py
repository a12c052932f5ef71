"""What lies in the folder of an expert in training and is not what one left there."""

import pytest
import torch

from distill_utils.experts.progress import Progress
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import save_tensors
from distill_utils.runs.writing import write_json

HISTORY = {"epoch": 1, "attempt": 0, "lines": [], "curve": []}


@pytest.fixture
def progress(tmp_path):
    save_tensors(tmp_path / "partial_0/epoch_1.pt", {"img": [], "txt": [], "buffers": {}, "forgetting": {}})
    write_json(tmp_path / "partial_0/epoch_1.json", HISTORY)
    (tmp_path / "partial_0/epoch_last.pt").write_text("someone's copy")
    return Progress(tmp_path, 0, 2)


def test_what_an_expert_left_is_found(progress):
    assert progress.history() == HISTORY and progress.weights(1)["img"] == []
    (progress.folder / "epoch_1.json").unlink()  # by the process that has just finished it
    assert progress.history() is None


@pytest.mark.parametrize("value", [[], 7, {}, HISTORY | {"lines": 7}, HISTORY | {"epoch": "x"}])
def test_a_history_that_is_none_is_a_sentence(progress, value):
    write_json(progress.folder / "epoch_1.json", value)
    with pytest.raises(UserError, match="epoch_1.json is not what an expert in training leaves"):
        progress.history()


@pytest.mark.parametrize(
    "value", [[], torch.zeros(2), {}, {"img": 7, "txt": [], "buffers": {}, "forgetting": {}}]
)
def test_weights_that_are_none_are_a_sentence(progress, value):
    save_tensors(progress.folder / "epoch_1.pt", value)
    with pytest.raises(UserError, match="epoch_1.pt is not what an expert in training leaves"):
        progress.weights(1)

"""Trajectories on disk: the documented format, sampling, and refusals."""

import pytest
import torch
import yaml
from builders import tiny_model

from distill_utils.experts.folder import expert_files, require_same_experts, write_meta
from distill_utils.experts.starts import open_starts
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.runs.errors import UserError
from networks.weights import Weights, describe_towers, flatten, snapshot, tower_parameters


def write_experts(folder, experts=2, epochs=3, **kwargs):
    """Experts whose weights are all (10 * expert + epoch)."""
    model = tiny_model(dtype=torch.float32, **kwargs)
    for n in range(experts):
        shots = []
        for epoch in range(epochs + 1):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(10 * n + epoch)
            shots.append(snapshot(model))
        write_expert(folder, n, shots)
    return model


def test_a_snapshot_is_a_copy_of_what_training_moves():
    model = tiny_model()
    shot = snapshot(model)
    assert len(shot.img) == 4 and len(shot.txt) == 6  # the frozen parameter is not in it
    before = [value.clone() for value in shot.img]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, shot.img))


def test_the_files_are_lists_of_lists_of_tensors_in_parameter_order(tmp_path):
    model = write_experts(tmp_path)
    for path, tower in zip(expert_files(tmp_path, 1), tower_parameters(model)):
        (expert,) = torch.load(path, weights_only=True)
        assert len(expert) == 4
        assert [value.shape for value in expert[2]] == [parameter.shape for _, parameter in tower]
        assert all(float(value.min()) == float(value.max()) == 12 for value in expert[2])


def test_every_expert_and_every_start_is_drawn_with_the_right_target(tmp_path):
    write_experts(tmp_path)
    experts, generator, seen = ExpertTrajectories(tmp_path), torch.Generator().manual_seed(0), set()
    starts = open_starts("joint", experts, 0, 2, 1)
    for _ in range(60):
        expert, epochs = starts.draw(len(experts), generator)
        start, target = experts.pair(expert, epochs, 1)
        assert start.img.dim() == 1 and all(torch.equal(b, a + 1) for a, b in zip(start, target))
        assert float(start.img[0]) == float(start.txt[0])
        seen.add(float(start.txt[0]))
    assert seen == {0, 1, 10, 11}


def test_files_of_the_reference_load(tmp_path):
    """Several experts to a file, no meta.yaml, Parameters in place of tensors."""
    model = tiny_model(dtype=torch.float32)
    for tower, values in zip(("img", "txt"), snapshot(model)):
        torch.save(
            [
                [[torch.nn.Parameter(value + epoch) for value in values] for epoch in range(3)]
                for _ in range(2)
            ],
            tmp_path / f"{tower}_replay_buffer_0.pt",
        )
    experts = ExpertTrajectories(tmp_path)
    experts.require_fits(model, 1, 1)
    start, target = experts.pair(1, Weights(0, 0), 2)
    assert len(experts) == 2
    assert torch.equal(start.img, flatten(snapshot(model).img)) and torch.allclose(target.txt, start.txt + 2)


def test_half_an_expert_is_none(tmp_path):
    write_experts(tmp_path, experts=1)
    expert_files(tmp_path, 0).txt.unlink()
    with pytest.raises(UserError, match="holds no experts"):
        ExpertTrajectories(tmp_path)


def test_refusals(tmp_path):
    write_experts(tmp_path, experts=1)
    experts = ExpertTrajectories(tmp_path)
    with pytest.raises(UserError, match="has 3 epochs.*epoch 4"):
        experts.require_fits(tiny_model(), 3, 1)
    with pytest.raises(UserError, match="img parameters do not have the shapes"):
        experts.require_fits(tiny_model(width=4), 0, 1)
    for content in (b"not a file of torch", b""):
        expert_files(tmp_path, 0).img.write_bytes(content)
        with pytest.raises(UserError, match="img_replay_buffer_0.pt cannot be read"):
            ExpertTrajectories(tmp_path)
    torch.save({"a": 1}, expert_files(tmp_path, 0).img)
    with pytest.raises(UserError, match="not a list of experts"):
        ExpertTrajectories(tmp_path)


def test_no_pickled_code_is_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "created"), "w"))

    write_experts(tmp_path, experts=1)
    torch.save([[[Evil()]]], expert_files(tmp_path, 0).img)
    with pytest.raises(UserError):
        ExpertTrajectories(tmp_path)
    assert not (tmp_path / "created").exists()


def test_meta_names_the_parameters_and_a_mismatch_is_a_sentence(tmp_path):
    meta = {"dataset": "toy", "image_size": 32, "parameters": describe_towers(tiny_model())}
    write_meta(tmp_path, meta)
    assert yaml.safe_load((tmp_path / "meta.yaml").read_text()) == meta
    assert meta["parameters"]["img"][0] == ["image_encoder.first.weight", [4, 3, 3, 3]]
    require_same_experts(tmp_path, {"dataset": "toy", "image_size": 32})
    with pytest.raises(UserError, match="image_size 32, but this run has 64 .--image_size"):
        require_same_experts(tmp_path, {"dataset": "toy", "image_size": 64})

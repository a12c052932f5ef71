"""Where inner loops start, and the straight lines that may stand for an expert's path."""

import pytest
import torch
from builders import tiny_model
from test_trajectories import write_experts

from distill_utils.experts.shortcut import ShortcutTrajectories
from distill_utils.experts.starts import open_starts
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.runs.errors import UserError
from networks.weights import Weights, flatten, snapshot


def write_moves(folder, image_moves, text_moves, n=0):
    """An expert each of whose towers moves by these amounts, alternately up and down, epoch for epoch."""
    model = tiny_model(dtype=torch.float32)
    begin, shots, far = snapshot(model), [], [0.0, 0.0]
    shots.append(begin)
    for moves in zip(image_moves, text_moves):
        far = [value + move for value, move in zip(far, moves)]
        shots.append(Weights(*([value + by for value in tower] for tower, by in zip(begin, far))))
    write_expert(folder, n, shots)
    return model


def drawn(starts, experts=1, times=200):
    numbers = torch.Generator().manual_seed(0)
    return {tuple(starts.draw(experts, numbers)[1]) for _ in range(times)}


def test_both_towers_start_together_or_each_on_its_own(tmp_path):
    write_experts(tmp_path)
    experts = ExpertTrajectories(tmp_path)
    assert drawn(open_starts("joint", experts, 1, 3, 1)) == {(1, 1), (2, 2)}
    independent = open_starts("independent", experts, 0, 2, 1)
    assert drawn(independent) == {(0, 0), (0, 1), (1, 0), (1, 1)} and independent.last() == 1
    with pytest.raises(UserError, match="--min_start_epoch 2 must be below --max_start_epoch 2"):
        open_starts("joint", experts, 2, 2, 1)


def test_each_tower_reads_its_own_snapshot(tmp_path):
    write_experts(tmp_path)
    start, target = ExpertTrajectories(tmp_path).pair(1, Weights(0, 2), 1)
    assert [float(vector[0]) for vector in (*start, *target)] == [10, 12, 11, 13]


@pytest.mark.parametrize(
    "images, texts, image_end, text_end",
    [
        # ratios 1 2 3 4: the median 2.5, images end at the first above it, texts at the last below
        ([1, 2, 3, 4], [1, 1, 1, 1], 2, 1),
        # ratios 4 1 3 2: above are epochs 0 and 2, below 1 and 3
        ([4, -1, 3, -2], [1, -1, -1, 1], 0, 3),
        # all equal: none is above
        ([2, 2, 2], [1, 1, 1], 2, 2),
    ],
)
def test_ranges_are_read_off_how_fast_each_tower_moves(tmp_path, images, texts, image_end, text_end):
    write_moves(tmp_path, images, texts)
    starts = open_starts("ranges", ExpertTrajectories(tmp_path), 0, 2, 1)
    assert [list(epochs) for epochs in starts.epochs] == [
        list(range(image_end + 1)),
        list(range(text_end + 1)),
    ]
    assert not starts.together and starts.last() == max(image_end, text_end)


def test_ranges_go_by_the_mean_over_experts_and_leave_room_for_the_target(tmp_path):
    write_moves(tmp_path, [1, 1, 1, 9], [1, 1, 1, 1], n=0)
    write_moves(tmp_path, [1, 5, 1], [1, 1, 1], n=1)  # shorter: of epoch 2 there is a target for none
    starts = open_starts("ranges", ExpertTrajectories(tmp_path), 0, 2, 2)
    # changes over two epochs 2 2 and 6 6: equal ratios
    assert [list(epochs) for epochs in starts.epochs] == [[0, 1], [0, 1]]
    with pytest.raises(UserError, match="of 4 epochs"):
        open_starts("ranges", ExpertTrajectories(tmp_path), 0, 2, 4)


def test_ranges_of_lines_end_where_the_lines_do(tmp_path):
    write_moves(tmp_path, [1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert open_starts("ranges", ExpertTrajectories(tmp_path), 0, 2, 1).last() == 3
    starts = open_starts("ranges", ShortcutTrajectories(tmp_path, 2), 0, 2, 1)
    # ratios of b: image 1/3 2/3, text 1/2 1/2
    assert [list(epochs) for epochs in starts.epochs] == [[0, 1], [0]]


def shortcut_twin(shots, end, epoch):
    """The point on the line, tensor by tensor, in float64."""
    found = []
    for tensor in range(len(shots[0])):
        path = [shot[tensor].double() for shot in shots]
        lengths = [(b - a).pow(2).sum().sqrt().item() for a, b in zip(path, path[1:])]
        b = sum(lengths[:epoch]) / sum(lengths[:end])
        found.append(((1 - b) * path[0] + b * path[end]).flatten())
    return torch.cat(found)


def test_a_shortcut_goes_straight_and_as_far_as_the_expert_in_each_tensor(tmp_path):
    model, shots = tiny_model(dtype=torch.float32), []
    for seed in range(6):
        torch.manual_seed(seed)
        for scale, parameter in enumerate(model.parameters(), 1):
            parameter.data = scale * torch.randn_like(parameter)
        shots.append(snapshot(model))
    write_expert(tmp_path, 0, shots)
    experts = ShortcutTrajectories(tmp_path, 4)
    experts.require_fits(model, 2, 2)
    for images, texts in ((0, 0), (1, 2), (2, 0)):
        pair = experts.pair(0, Weights(images, texts), 2)
        for weights, later in zip(pair, (0, 2)):
            for vector, tower, epoch in zip(weights, zip(*shots), (images, texts)):
                expected = shortcut_twin(tower, 4, epoch + later)
                assert torch.allclose(vector.double(), expected, rtol=1e-5, atol=1e-5)
    whole = experts.pair(0, Weights(0, 0), 4)
    for weights, shot in zip(whole, (shots[0], shots[4])):
        assert all(torch.allclose(vector, flatten(tower), atol=1e-6) for vector, tower in zip(weights, shot))
    with pytest.raises(UserError, match="--shortcut 4 ends before epoch 5"):
        experts.require_fits(model, 3, 2)
    with pytest.raises(UserError, match="has 5 epochs"):
        ShortcutTrajectories(tmp_path, 6).require_fits(model, 0, 1)


def test_a_tensor_that_never_moves_stays(tmp_path):
    write_moves(tmp_path, [0, 0], [1, 3])
    start, target = ShortcutTrajectories(tmp_path, 2).pair(0, Weights(0, 0), 1)
    assert torch.equal(start.img, target.img) and torch.isfinite(target.img).all()
    assert torch.allclose(target.txt - start.txt, torch.ones_like(start.txt), atol=1e-5)

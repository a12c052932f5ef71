"""A frozen image tower is looked through once an outer step, and the gradient is that of the plain path."""

import threading

import pytest
import torch
from builders import tiny_model
from test_gradient import PAIRS, TAU, assert_same, gradients, problem
from test_several_processes import ThreadWorld

from distill_utils.matching import oracles
from distill_utils.matching.gradient import Matcher
from distill_utils.training.losses import LOSSES
from networks.two_tower import FrozenEncoder, ProjectionHead, TwoTower
from networks.weights import Weights, flatten, tower_parameters


class Counted(torch.nn.Module):
    """An encoder that counts the images that pass it."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.images, self.largest = encoder, 0, 0

    def forward(self, images):
        self.images, self.largest = self.images + len(images), max(self.largest, len(images))
        return self.encoder(images)


def frozen_problem(steps=4, batches=None):
    """As `problem`, under P2: a head with dropout on a frozen encoder."""
    whole, synthetic, _, _, minibatches = problem(steps=steps)
    width = whole.text_projection.fc.out_features
    torch.manual_seed(1)
    head = ProjectionHead(width, width, dropout=0.5).to(torch.float64)
    tower = torch.nn.Sequential(FrozenEncoder(Counted(whole.image_encoder)), head)
    model = TwoTower(tower, whole.text_projection).train()
    start = Weights(*(flatten([p.detach() for _, p in part]) for part in tower_parameters(model)))
    target = Weights(*(vector + 0.1 * torch.randn_like(vector) for vector in start))
    return model, synthetic, start, target, batches or minibatches


@pytest.mark.parametrize("gradient", ["full", "truncated"])
@pytest.mark.parametrize("second_order, tolerance", [("forward", 1e-9), ("reverse", 1e-9), ("finite", 1e-5)])
def test_equals_the_unroll_through_the_tower(gradient, second_order, tolerance):
    problem_ = frozen_problem()
    how = {"gradient": gradient, "temperature": TAU}
    loss = oracles.unroll(*problem_, LOSSES["WBCE"], seed=5, **how)
    model, synthetic, *rest = problem_
    expected = gradients(synthetic)
    ours = Matcher(model, LOSSES["WBCE"], second_order=second_order, **how)(synthetic, *rest, seed=5)
    assert [float(value) for value in ours] == pytest.approx([float(value) for value in loss], rel=1e-10)
    assert_same(synthetic, expected, tolerance)


def test_an_image_passes_once_and_once_back_however_often_it_is_drawn():
    drawn = [torch.tensor(ids) for ids in ([0, 4, 2], [2, 0, 5], [5, 2, 0])]
    model, synthetic, *rest = frozen_problem(batches=drawn)
    matcher = Matcher(model, LOSSES["WBCE"], temperature=TAU)
    matcher(synthetic, *rest, seed=5)
    counted = matcher._frozen.encoder.encoder
    assert counted.images == 1 + 4 + 4  # one for the width
    assert counted.largest == 3  # no more at once than an inner step has
    moved = synthetic.images.grad.flatten(1).norm(dim=1) > 0
    assert moved.tolist() == [pair in (0, 2, 4, 5) for pair in range(PAIRS)]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_divide_the_images_and_have_the_gradient_of_one(size):
    found, drawing = {}, threading.Lock()

    def run(world, key):
        with drawing:  # torch's generator is one for all threads
            model, synthetic, *rest = frozen_problem()
        matcher = Matcher(model.eval(), LOSSES["WBCE"], temperature=TAU, world=world)
        matcher(synthetic, *rest, seed=5)
        found[key] = list(gradients(synthetic).values()), matcher._frozen.encoder.encoder.images

    run(ThreadWorld(0, 1, {}), "alone")
    shared = {"barrier": threading.Barrier(size)}
    worlds = [ThreadWorld(rank, size, shared) for rank in range(size)]
    threads = [threading.Thread(target=run, args=(world, world.rank)) for world in worlds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(size):
        assert all(map(torch.equal, found[rank][0], found["alone"][0]))
    looked = {key: images - 1 for key, (_, images) in found.items()}  # without the one for the width
    assert sum(looked[rank] for rank in range(size)) == looked["alone"]


def test_a_tower_that_trains_is_not_looked_through_beforehand():
    matcher = Matcher(tiny_model(), LOSSES["WBCE"])
    images = torch.randn(3, 3, 9, 8)
    assert matcher._frozen.features(images, torch.arange(3), 2) is images
    assert matcher._frozen.pull_back(None, images, None, None) is images

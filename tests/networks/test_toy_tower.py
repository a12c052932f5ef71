"""The toy data's pretrained tower: what it is taught, that it learns, that it is made once."""

import random

import pytest
import torch

from data.toy_scenes import make_scene
from data.transforms import normalise
from networks import image_encoders, toy_tower
from networks.image_encoders import build_image_encoder


@pytest.fixture
def small(monkeypatch):
    """Towers of few scenes, as build_image_encoder asks for them."""
    plain = toy_tower.ensure_toy_tower
    calls = []

    def ensure(path, name):
        calls.append(path)
        return plain(path, name, scenes=256, epochs=2)

    monkeypatch.setattr(image_encoders, "ensure_toy_tower", ensure)
    return calls


def test_labels_are_what_is_drawn():
    images, labels = toy_tower.labelled_scenes(5, seed=3)
    assert images.shape == (5, 3, 48, 48) and images.dtype == torch.uint8
    for index, row in enumerate(labels):
        scene = make_scene(random.Random(f"tower/3/{index}"))
        named = {toy_tower._LABELS[n] for n in row.nonzero().flatten().tolist()}
        assert named == {(shape.kind, shape.colour) for shape in scene.shapes} | {scene.background}
    assert not torch.equal(images, toy_tower.labelled_scenes(5, seed=4)[0])


def test_an_encoder_is_pretrained_once_and_the_same_for_all(small, tmp_path, monkeypatch):
    first = build_image_encoder("toy_nfnet", True, tmp_path)
    written = (tmp_path / "toy_nfnet.pth").stat().st_mtime_ns
    monkeypatch.setattr(toy_tower, "_train", lambda *_: pytest.fail("trained twice"))
    again = build_image_encoder("toy_nfnet", True, tmp_path)
    assert (tmp_path / "toy_nfnet.pth").stat().st_mtime_ns == written and len(small) == 2
    states = [model.state_dict() for model in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    untrained = build_image_encoder("toy_nfnet", False, tmp_path).state_dict()
    assert any(not torch.equal(untrained[name], states[0][name]) for name in untrained)


def test_it_learns_to_name_scenes_that_it_has_not_seen(tmp_path):
    images, labels = toy_tower.labelled_scenes(64, seed=99)
    losses = []
    for epochs in (1, 4):
        path = tmp_path / f"{epochs}.pth"
        toy_tower.ensure_toy_tower(path, scenes=320, epochs=epochs)
        model = toy_tower.timm.create_model("test_nfnet", num_classes=labels.shape[1]).eval()
        model.load_state_dict(torch.load(path, weights_only=True))
        with torch.no_grad():
            logits = model(normalise(images))
        losses.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).item())
    assert losses[1] < losses[0]


def test_random_numbers_of_others_go_on_as_before(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    toy_tower.ensure_toy_tower(tmp_path / "tower.pth", scenes=64, epochs=1)
    assert torch.equal(torch.rand(3), expected)

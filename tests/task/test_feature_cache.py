"""Features of a frozen encoder on disk: made once, and never another encoder's or another image's."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import transforms
from data.karpathy import load_image
from distill_utils.task.features import FeatureCache, fingerprint


def image_file(path, seed):
    numbers = np.random.default_rng(seed)
    Image.fromarray(numbers.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return path


class Images(torch.utils.data.Dataset):
    def __init__(self, paths, size):
        self.paths, self.transform = paths, transforms.test_transform(size)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, item):
        return self.transform(load_image(self.paths[item]))


class Encoder(nn.Sequential):
    """Counts its calls."""

    def __init__(self, padding=1):
        super().__init__(nn.Conv2d(3, 4, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


@pytest.fixture
def paths(tmp_path):
    return [image_file(tmp_path / f"{n}.png", n) for n in range(5)]


def look(encoder, paths, tmp_path, size=16):
    cache = FeatureCache(encoder, tmp_path / "kept", "cpu", batch_size=2)
    return cache.of_files(Images(paths, size), paths, size, 0, "test")


def test_the_second_look_is_from_the_disk(paths, tmp_path):
    encoder = Encoder()
    first = look(encoder, paths, tmp_path)
    assert first.shape == (5, 4) and encoder.calls == 3
    assert torch.equal(look(encoder, paths, tmp_path), first) and encoder.calls == 3
    images = torch.stack([Images(paths, 16)[n] for n in range(5)])
    assert torch.allclose(first, encoder(transforms.normalise(images)), atol=1e-6)


def test_whatever_changes_the_features_is_looked_at_anew(paths, tmp_path):
    torch.manual_seed(0)
    encoder = Encoder()
    first = look(encoder, paths, tmp_path)
    assert not torch.equal(look(encoder, paths[::-1], tmp_path), first)
    assert not torch.equal(look(encoder, paths, tmp_path, size=24), first)
    other = Encoder(padding=0)  # the same weights, another function
    other.load_state_dict(encoder.state_dict())
    assert not torch.equal(look(other, paths, tmp_path), first)
    image_file(paths[2], 77)
    os.utime(paths[2], ns=(1, 1))
    changed = look(encoder, paths, tmp_path)
    assert [n for n in range(5) if not torch.equal(changed[n], first[n])] == [2]
    with torch.no_grad():
        encoder[0].weight[0, 0, 0, 0] += 1
    assert not torch.equal(look(encoder, paths, tmp_path), changed)


def test_a_file_left_broken_is_made_anew(paths, tmp_path):
    encoder = Encoder()
    first = look(encoder, paths, tmp_path)
    (kept,) = (tmp_path / "kept").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:20])
    assert torch.equal(look(encoder, paths, tmp_path), first) and encoder.calls == 6


def test_the_fingerprint_is_of_function_and_weights():
    torch.manual_seed(0)
    one, same, other = Encoder(), Encoder(), Encoder()
    same.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)

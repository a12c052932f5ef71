"""The published augmentation: what each operation does to a known image, how often, and with which draws."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data import transforms
from data.transforms import PublishedAugment, train_transform

SIZE = 40
GREY = 128


@pytest.fixture
def image():
    """No pixel is grey 128, no channel spans 0 to 255; every pixel differs from its neighbours."""
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    return Image.fromarray(np.stack([10 + 2 * x, 20 + 2 * y, 30 + x + y], axis=2).astype(np.uint8))


def at(image, name, sign=1):
    return np.asarray(transforms._OPERATIONS[name](image, sign)).astype(int)


def test_the_ten_operations_are_the_published_ones():
    names = "Identity AutoContrast Equalize Brightness Sharpness ShearX ShearY TranslateX TranslateY Rotate"
    assert list(transforms._OPERATIONS) == names.split()


@pytest.mark.parametrize("name", ["Identity", "Brightness", "Sharpness"])
def test_at_level_five_brightness_and_sharpness_change_nothing(image, name):
    assert (at(image, name) == np.asarray(image)).all()


@pytest.mark.parametrize(
    "name, same", [("AutoContrast", ImageOps.autocontrast), ("Equalize", ImageOps.equalize)]
)
def test_contrast_and_equalize_are_pillows(image, name, same):
    assert (at(image, name) == np.asarray(same(image))).all() and (at(image, name) != np.asarray(image)).any()


@pytest.mark.parametrize("size", [40, 80])
@pytest.mark.parametrize("name, axis", [("TranslateX", 1), ("TranslateY", 0)])
def test_a_translation_is_of_five_pixels_whatever_the_size(image, name, axis, size):
    image = image.resize((size, size))
    pixels = np.asarray(image).astype(int)
    for sign in (1, -1):
        moved = np.roll(pixels, 5 * sign, axis)
        border = [slice(None), slice(None)]
        border[axis] = slice(0, 5) if sign > 0 else slice(-5, None)
        moved[tuple(border)] = GREY
        assert (at(image, name, sign) == moved).all()


@pytest.mark.parametrize("name", ["ShearX", "ShearY"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shear_moves_a_row_by_point_fifteen_of_its_distance_from_the_edge(image, name, sign):
    """Slow twin: every pixel by bilinear interpolation of a matrix [[1, .15], [0, 1]] about the corner."""
    pixels, sheared = np.asarray(image).astype(float), at(image, name, sign)
    if name == "ShearY":
        pixels, sheared = pixels.swapaxes(0, 1), sheared.swapaxes(0, 1)
    row = SIZE - 4  # 36.5 from the edge: moved by 5.475
    shift = abs((row + 0.5) * 0.15)
    grey = np.flatnonzero((sheared[row] == GREY).all(axis=1))
    assert len(grey) in (5, 6) and (grey[0] == 0 or grey[-1] == SIZE - 1)
    inside = np.arange(10, SIZE - 10)
    candidates = [
        pixels[row, inside + side * math.floor(shift)] * (1 - shift % 1)
        + pixels[row, inside + side * math.ceil(shift)] * (shift % 1)
        for side in (1, -1)
    ]
    errors = [np.abs(sheared[row, inside] - wanted).max() for wanted in candidates]
    assert min(errors) <= 1 < max(errors)  # rounding; the other direction is far off
    other = at(image, name, -sign)
    assert (other != at(image, name, sign)).any()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rotation_is_of_fifteen_degrees_about_the_middle(image, sign):
    rotated = at(image, "Rotate", sign)
    exact = image.rotate(15 * sign, Image.Resampling.BILINEAR, fillcolor=(GREY,) * 3)
    assert (rotated == np.asarray(exact)).all() and (rotated[0, 0] == GREY).all()


def counted(monkeypatch, draws):
    """How often each (operation, sign) was done in `draws` images, and how often 0, 1 and 2 were."""
    done, at_once, order = Counter(), Counter(), []
    for name in transforms._OPERATIONS:
        monkeypatch.setitem(
            transforms._OPERATIONS, name, lambda image, sign, name=name: order.append((name, sign)) or image
        )
    torch.manual_seed(0)
    augment = PublishedAugment()
    for _ in range(draws):
        order.clear()
        augment(None)
        done.update(order)
        at_once[len(order)] += 1
        if len(order) == 2:
            at_once["same"] += order[0][0] == order[1][0]
    return done, at_once


def test_two_operations_with_replacement_each_with_probability_one_half(monkeypatch):
    draws = 20_000
    done, at_once = counted(monkeypatch, draws)
    assert len(done) == 20  # ten operations, two signs
    for number in done.values():  # each: 2 draws x 1/10 x 1/2 x 1/2
        assert number == pytest.approx(draws / 20, rel=0.15)
    for number, share in ((0, 1 / 4), (1, 1 / 2), (2, 1 / 4), ("same", 1 / 40)):
        assert at_once[number] == pytest.approx(draws * share, rel=0.12)


@pytest.mark.parametrize("augmentation", transforms.AUGMENTATIONS)
def test_draws_are_torchs(image, augmentation):
    transform = train_transform(24, augmentation)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(torch.stack([transform(image) for _ in range(10)]))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_the_published_one_is_the_default(image):
    torch.manual_seed(5)
    default = [train_transform(24)(image) for _ in range(5)]
    torch.manual_seed(5)
    assert all(map(torch.equal, default, [train_transform(24, "published")(image) for _ in range(5)]))

"""The picture of distilled pairs: the pixels of the sets, and sentences that fit below them."""

import numpy as np
import pytest
import torch

from distill_utils.pages.inputs import open_run
from distill_utils.pages.pairs import draw_pairs, wrap
from distill_utils.runs.writing import write_json
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import IdentitySimilarity


def write_run(folder, pairs=3, size=(60, 60), steps=(0, 7)):
    for step in steps:
        torch.manual_seed(step)
        images, meta = torch.rand(pairs, 3, *size) - 0.5, {"step": step, "source_captions": ["a cat"] * pairs}
        SyntheticSet(images, torch.rand(pairs, 2), IdentitySimilarity(pairs), meta=meta).save(
            folder / f"distilled_{step}.pt"
        )
    near = [[{"caption": f"dog number {n}", "cosine": 0.5}] for n in range(pairs)]
    write_json(folder / "nearest.json", {"step": steps[-1], "captions": near})
    return folder


def colours(picture, box):
    return np.asarray(picture.crop(box)).astype(int)


def test_every_pixel_of_a_small_set_is_a_square(tmp_path):
    run = open_run(write_run(tmp_path))
    picture = draw_pairs(run)
    for row, synthetic in enumerate((run.initial, run.final)):
        for column in range(3):
            left, top = 4 + column * 188, 24 + row * (20 + 180 + 8)
            shown = colours(picture, (left, top, left + 180, top + 180))
            pixels = (synthetic.pixels()[column] * 255).round().permute(1, 2, 0).numpy().astype(int)
            assert (shown == pixels.repeat(3, axis=0).repeat(3, axis=1)).all()
    below = colours(picture, (0, 24 + 2 * 208, picture.width, picture.height))
    assert picture.width == 3 * 188 and (below < 100).any()  # and something is written


@pytest.mark.parametrize(
    "pairs, size, width",
    [(1, (16, 16), 184), (20, (48, 48), 1200), (20, (224, 224), 1128), (9, (500, 20), 0)],
)
def test_it_is_some_1200_pixels_wide(tmp_path, pairs, size, width):
    picture = draw_pairs(open_run(write_run(tmp_path, pairs, size, steps=(0,))))
    assert picture.width == width or width == 0 and picture.width <= 1216
    assert np.asarray(picture).min() < 200


def test_without_nearest_captions_it_says_what_they_began_as(tmp_path):
    with_nearest = draw_pairs(open_run(write_run(tmp_path))).tobytes()
    assert draw_pairs(open_run(tmp_path)).tobytes() == with_nearest
    (tmp_path / "nearest.json").unlink()
    assert draw_pairs(open_run(tmp_path)).tobytes() != with_nearest


def test_lines_are_no_wider_than_their_column():
    letters = 10
    assert wrap("a cat on a very long mat", letters, len) == ["a cat on a", "very long", "mat"]
    assert wrap("uncharacteristically so", letters, len) == ["uncharacte", "ristically", "so"]
    assert wrap("", letters, len) == [""]
    cut = wrap("word " * 100, letters, len)
    assert len(cut) == 7 and cut[-1].endswith("…") and max(map(len, cut)) <= letters

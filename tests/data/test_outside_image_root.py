"""An annotation file names images under the folder of images, and no others."""

import json

import pytest
from PIL import Image

from data.karpathy import read_gallery, read_pairs
from distill_utils.runs.errors import UserError


@pytest.mark.parametrize(
    "name", ["../secret.png", "a/../../secret.png", "/secret.png", "", "..", 7, None, ["a"], {}]
)
@pytest.mark.parametrize("read", [read_pairs, read_gallery])
def test_an_entry_that_reaches_outside_is_named(tmp_path, name, read):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    root = tmp_path / "images"
    root.mkdir()
    if name == "/secret.png":
        name = f"{tmp_path}/secret.png"
    entries = [
        {"image": "fine/a.png", "caption": "a", "image_id": 0},
        {"image": name, "caption": "b", "image_id": 1},
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match="annotations.json, entry 1: an image is a path under the folder"):
        read(tmp_path / "annotations.json", root)


def test_names_with_dots_and_folders_are_fine(tmp_path):
    names = ["val2014/COCO_val2014_1.jpg", "a..b.png", ".hidden.png", "./c.png"]
    entries = [{"image": name, "caption": "a"} for name in names]
    (tmp_path / "annotations.json").write_text(json.dumps(entries))
    assert len(read_gallery(tmp_path / "annotations.json", tmp_path)) == len(names)

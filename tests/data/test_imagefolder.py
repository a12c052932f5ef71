"""One's own photos: folders with metadata.jsonl, whole and odd, and Karpathy files of any name."""

import json
import shutil

import pytest
import torch
from PIL import Image

from data import build_datasets
from distill_utils.runs.errors import UserError


def photo(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (number % 256, number // 256, 77)).save(path, format="PNG")


def write_lines(folder, lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)


def folder_of(root, count, first=0, prefix="photo_"):
    """`count` different photos, one caption each."""
    names = [f"{prefix}{number}.png" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        photo(root / name, number)
    write_lines(root, [{"file_name": name, "text": f"Number {name}."} for name in names])
    return root


def read(root, name="imagefolder", ann_root=None):
    return build_datasets(name, root, ann_root, image_size=8, augmentation=None)


def names(split):
    return [path.name for path in split.image_paths]


# --- split folders ---


@pytest.mark.parametrize("val", ["val", "validation", "valid", "dev"])
def test_three_folders_are_the_three_splits(tmp_path, val):
    for split, count, first in (("train", 3, 0), (val, 2, 10), ("test", 1, 20)):
        folder_of(tmp_path / split, count, first)
    photo(tmp_path / "train/in/more.png", 5)
    photo(tmp_path / "train/nobody_describes_me.png", 6)
    lines = [
        {"file_name": "photo_0.png", "text": ["One DOG!", "a dog"], "likes": 3},
        {"file_name": "in/more.png", "text": "more"},
        "",
        {"file_name": "photo_0.png", "text": "again"},
    ]
    write_lines(tmp_path / "train", lines)
    write_lines(tmp_path / val, [{"file_name": f"photo_1{n}.png", "text": ["x"] * (n + 1)} for n in (1, 0)])
    data = read(tmp_path)
    assert names(data.train) == ["photo_0.png", "more.png"]
    assert data.train.captions == ["one dog", "a dog", "again", "more"]
    assert data.train.image_index.tolist() == [0, 0, 0, 1]
    assert names(data.val) == ["photo_11.png", "photo_10.png"] and data.val.txt2img.tolist() == [0, 0, 1]
    assert names(data.test) == ["photo_20.png"]
    image, pair = data.train[3]
    assert (
        pair == 3
        and image[:, 0, 0].tolist() == [5, 0, 77]
        and torch.equal(data.val[1][0, 0], image[0, 0] + 5)
    )


def test_a_split_without_a_folder_comes_out_of_train(tmp_path):
    folder_of(tmp_path / "train", 20)
    folder_of(tmp_path / "test", 3, 100)
    data = read(tmp_path)
    assert names(data.test) == ["photo_100.png", "photo_101.png", "photo_102.png"]
    assert len(data.val) == 2 and not set(names(data.train)) & set(names(data.val))
    assert len(names(data.train)) == 18


def test_captions_may_lie_elsewhere(tmp_path):
    folder_of(tmp_path / "photos", 10)
    (tmp_path / "captions").mkdir()
    shutil.move(tmp_path / "photos/metadata.jsonl", tmp_path / "captions")
    data = read(tmp_path / "photos", ann_root=tmp_path / "captions")
    assert len(data.train) == 8 and all(path.is_file() for path in data.train.image_paths)


# --- one folder, divided ---


def test_one_folder_is_divided_the_same_way_wherever_it_is(tmp_path):
    data = read(folder_of(tmp_path / "here", 200))
    sizes = [len(split) for split in data]
    assert sizes == [160, 20, 20] and len({name for split in data for name in names(split)}) == 200
    assert names(data.train) == sorted(names(data.train), key=lambda name: int(name[6:-4]))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    lines = (tmp_path / "there/metadata.jsonl").read_text().splitlines()
    write_lines(tmp_path / "there", lines[::-1])
    again = read(tmp_path / "there")
    assert [set(names(split)) for split in again] == [set(names(split)) for split in data]
    # Not the order of the names: a folder sorted by subject is divided in all its subjects.
    numbers = [int(name[6:-4]) for name in names(data.test)]
    assert min(numbers) < 60 and max(numbers) > 140


def test_copies_of_a_photo_stay_on_one_side(tmp_path):
    folder_of(tmp_path, 40)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    for number in range(40):
        shutil.copy(tmp_path / f"photo_{number}.png", tmp_path / f"copy_of_{number}.png")
        lines.append({"file_name": f"copy_of_{number}.png", "text": "a copy"})
    write_lines(tmp_path, lines)
    sides = [{int(name.split("_")[-1][:-4]) for name in names(split)} for split in read(tmp_path)]
    assert [len(side) for side in sides] == [32, 4, 4] and len(set.union(*sides)) == 40


@pytest.mark.parametrize("count, sizes", [(3, [1, 1, 1]), (9, [7, 1, 1]), (26, [20, 3, 3])])
def test_few_photos(tmp_path, count, sizes):
    assert [len(split) for split in read(folder_of(tmp_path, count))] == sizes


# --- mistakes ---


GOOD = {"file_name": "photo_0.png", "text": "fine"}


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", r"metadata.jsonl, line 2 is no JSON: "),
        ("[" * 100_000, r"line 2 is no JSON: "),
        ("7", r"line 2: 'file_name' is missing; every line needs file_name and text"),
        ({"text": "a"}, "line 2: 'file_name' is missing"),
        ({"file_name": "photo_1.png", "caption": "a"}, "line 2: 'text' is missing"),
        ({"file_name": "photo_1.png", "text": 7}, "line 2: a caption must be a string, not 7"),
        ({"file_name": "photo_1.png", "text": ["a", None]}, "line 2: a caption must be a string, not None"),
        ({"file_name": "photo_1.png", "text": "  ..! "}, "line 2: the text '  ..! ' has no words"),
        ({"file_name": "photo_1.png", "text": []}, "line 2: 'photo_1.png' has no text"),
        ({"file_name": "photo_1.png", "text": "\ud800"}, "line 2: the caption .* is not text"),
        ({"file_name": "../photo_1.png", "text": "a"}, "line 2: an image is a path under the folder"),
        ({"file_name": "/photo_1.png", "text": "a"}, "line 2: an image is a path under the folder"),
        ({"file_name": 3, "text": "a"}, "line 2: an image is a path under the folder"),
        ({"file_name": "nowhere.png", "text": "a"}, "line 2: .*nowhere.png does not exist"),
        ({"file_name": "nowhere\udcff\0.png", "text": "a"}, "line 2: .* does not exist"),
        ({"file_name": ".", "text": "a"}, "line 2: an image is a path under the folder"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, words):
    folder_of(tmp_path, 5)
    write_lines(tmp_path, [GOOD, line])
    with pytest.raises(UserError, match=words):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_an_empty_or_strange_file_is_one_sentence(tmp_path, content):
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="metadata.jsonl (has no line|cannot be read)"):
        read(tmp_path)


def test_lines_end_at_line_feeds_alone(tmp_path):
    folder_of(tmp_path, 3)
    lines = [
        json.dumps({"file_name": f"photo_{n}.png", "text": "one\u2028two\x85three"}, ensure_ascii=False)
        + "\r"
        for n in range(3)
    ]
    write_lines(tmp_path, lines)
    assert read(tmp_path).train.captions == ["one two three"]


def test_no_metadata_and_no_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="Neither .*metadata.jsonl nor .*train/metadata.jsonl exists"):
        read(tmp_path)
    with pytest.raises(UserError, match="--dataset imagefolder reads your own photos.*--image_root"):
        read(None)


def test_too_few_photos_are_one_sentence(tmp_path):
    folder_of(tmp_path, 2)
    shutil.copy(tmp_path / "photo_0.png", tmp_path / "copy.png")
    write_lines(
        tmp_path, [{"file_name": f"{name}.png", "text": "a"} for name in ("photo_0", "photo_1", "copy")]
    )
    with pytest.raises(UserError, match="has 2 different images, and 3 are the fewest .* val and test"):
        read(tmp_path)
    folder_of(tmp_path / "train", 1)
    folder_of(tmp_path / "val", 1)
    with pytest.raises(UserError, match="train has 1 different images, and 2 are the fewest .* train, test"):
        read(tmp_path)


# --- Karpathy files of any name ---


def write_karpathy(folder, prefix):
    for number in range(3):
        photo(folder / f"images/{number}.png", number)
    entries = [{"image": f"images/{n}.png", "caption": "A cat.", "image_id": n} for n in range(3)]
    for split in ("train", "val", "test"):
        (folder / f"{prefix}{split}.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("prefix", ["", "my_own_"])
def test_karpathy_files_of_ones_own(tmp_path, prefix):
    write_karpathy(tmp_path, prefix)
    for ann_root in (None, tmp_path):
        data = read(tmp_path, "karpathy", ann_root)
        assert [len(split) for split in data] == [3, 3, 3] and data.val.captions == ["a cat"] * 3


def test_no_karpathy_file_and_two_are_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match="one annotation file train.json or NAME_train.json, and it holds none"
    ):
        read(tmp_path, "karpathy")
    write_karpathy(tmp_path, "a_")
    write_karpathy(tmp_path, "b_")
    with pytest.raises(UserError, match="it holds a_train.json, b_train.json"):
        read(tmp_path, "karpathy")

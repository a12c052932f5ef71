"""The toy data's files: the same everywhere, whole after an interruption, in the loaders' layout."""

import json
import os
import time

import pytest
from PIL import Image

from data import build_datasets, toy
from data.captions import clean_caption
from data.toy import ensure_toy, main
from data.toy_scenes import draw_scene, make_example
from distill_utils.runs.errors import UserError

SIZES = (4, 2, 3)


def files(folder):
    return {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_data(a, b):
    assert list(files(a)) == list(files(b))
    for name, path in files(a).items():
        if name.suffix == ".png":
            assert Image.open(path).tobytes() == Image.open(files(b)[name]).tobytes()
        else:
            assert path.read_bytes() == files(b)[name].read_bytes()


def test_layout_and_counts(tmp_path):
    ensure_toy(tmp_path / "pictures", tmp_path / "texts", SIZES)
    train, val, test = (
        json.loads((tmp_path / "texts" / f"toy_{split}.json").read_text())
        for split in ("train", "val", "test")
    )
    assert [len(train), len(val), len(test)] == [5 * 4, 2, 3]
    captions = make_example(0, "train", 1)[1]
    assert train[5:10] == [
        {"image": "images/train_00001.png", "caption": caption, "image_id": "train_00001"}
        for caption in captions
    ]
    assert test[2] == {"image": "images/test_00002.png", "caption": make_example(0, "test", 2)[1]}
    assert len(list((tmp_path / "pictures" / "images").iterdir())) == sum(SIZES)
    drawn = draw_scene(make_example(0, "val", 1)[0])
    assert Image.open(tmp_path / "pictures" / "images" / "val_00001.png").tobytes() == drawn.tobytes()


def test_the_real_loaders_read_it(tmp_path):
    data = build_datasets("toy", tmp_path, tmp_path, image_size=32, toy_sizes=SIZES)
    assert [len(split) for split in data] == [20, 2, 3]
    assert data.train[7][0].shape == data.test[2].shape == (3, 32, 32)
    assert data.train.captions[7] == clean_caption(make_example(0, "train", 1)[1][2])
    assert data.val.txt2img.tolist() == [0] * 5 + [1] * 5


def test_two_folders_are_the_same_and_a_seed_makes_another(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ensure_toy(tmp_path / name, tmp_path / name, SIZES, seed)
    assert_same_data(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "toy_train.json").read_bytes() != (
        tmp_path / "c" / "toy_train.json"
    ).read_bytes()


def test_a_second_call_writes_nothing(tmp_path):
    ensure_toy(tmp_path, tmp_path, SIZES)
    before = {name: path.stat().st_mtime_ns for name, path in files(tmp_path).items()}
    ensure_toy(tmp_path, tmp_path, list(SIZES))
    assert {name: path.stat().st_mtime_ns for name, path in files(tmp_path).items()} == before


def test_growth_keeps_the_earlier_images(tmp_path):
    ensure_toy(tmp_path, tmp_path, SIZES)
    before = {name: path.stat().st_mtime_ns for name, path in files(tmp_path / "images").items()}
    entries = json.loads((tmp_path / "toy_train.json").read_text())
    ensure_toy(tmp_path, tmp_path, (6, 3, 3))
    after = files(tmp_path / "images")
    assert len(after) == 12 and all(after[name].stat().st_mtime_ns == time for name, time in before.items())
    assert json.loads((tmp_path / "toy_train.json").read_text())[: len(entries)] == entries


def test_another_seed_leaves_no_image_of_the_first(tmp_path):
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    for sizes, seed in ((SIZES, 0), ((1, 1, 1), 1), (SIZES, 1)):
        ensure_toy(used, used, sizes, seed)
    ensure_toy(fresh, fresh, SIZES, 1)
    assert_same_data(used, fresh)


def test_an_interrupted_run_and_a_lost_image_are_made_good(tmp_path, monkeypatch):
    broken, fresh = tmp_path / "broken", tmp_path / "fresh"
    ensure_toy(fresh, fresh, SIZES, 1)
    ensure_toy(broken, broken, SIZES, 0)
    fates = iter([None, None, KeyboardInterrupt])

    def draw_until_interrupted(scene):
        if fate := next(fates):
            raise fate
        return draw_scene(scene)

    with monkeypatch.context() as patch:
        patch.setattr("data.toy.draw_scene", draw_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_toy(broken, broken, SIZES, 1)
    ensure_toy(broken, broken, SIZES, 1)
    assert_same_data(broken, fresh)
    (broken / "images" / "train_00002.png").unlink()
    ensure_toy(broken, broken, SIZES, 1)
    assert_same_data(broken, fresh)


@pytest.mark.parametrize(
    "sizes", [(1, 2), (1, 2, 0), (1, 2, -3), (1, 2, 3.0), (True, 2, 3), ("1", 2, 3), 300, None]
)
def test_bad_sizes_are_refused_in_a_sentence(tmp_path, sizes):
    with pytest.raises(UserError, match="three positive numbers of images, TRAIN,VAL,TEST, not "):
        ensure_toy(tmp_path, tmp_path, sizes)
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "toy_val.json").write_text("[]")
    with pytest.raises(
        UserError, match="toy_val.json has no toy_meta.json beside it, so it is not overwritten"
    ):
        ensure_toy(tmp_path, tmp_path, SIZES)
    assert list(files(tmp_path).values()) == [tmp_path / "toy_val.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"sizes": 3}'])
def test_a_strange_meta_file_is_refused(tmp_path, text):
    (tmp_path / "toy_meta.json").write_text(text)
    with pytest.raises(UserError, match="toy_meta.json is not"):
        ensure_toy(tmp_path, tmp_path, SIZES)


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for image_root, ann_root in (("file", "texts"), ("pictures", "file")):
        with pytest.raises(UserError, match="The toy data cannot be written: .*file"):
            ensure_toy(tmp_path / image_root, tmp_path / ann_root, SIZES)


def test_the_command_line(tmp_path, monkeypatch):
    main(
        [
            "--image_root",
            str(tmp_path / "a"),
            "--ann_root",
            str(tmp_path / "a"),
            "--toy_size",
            "4,2,3",
            "--seed",
            "2",
        ]
    )
    ensure_toy(tmp_path / "b", tmp_path / "b", SIZES, 2)
    assert_same_data(tmp_path / "a", tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    main(["--toy_size", "1, 1, 1"])
    assert (tmp_path / "distill_utils" / "data" / "Toy" / "images" / "test_00000.png").exists()
    for text in ("4,2", "4,2,x", "4,2,0", ""):
        with pytest.raises(UserError, match=f"not '{text}'"):
            main(["--toy_size", text])


def test_another_process_that_wants_other_sizes_waits_until_these_are_read(tmp_path, monkeypatch):
    plain, rivals = toy.ensure_toy, []

    def with_a_rival(*args):
        plain(*args)
        rivals.append(os.fork())
        if not rivals[-1]:
            monkeypatch.setattr(toy, "ensure_toy", plain)
            build_datasets("toy", tmp_path, tmp_path, toy_sizes=(6, 6, 6))
            os._exit(0)
        time.sleep(1)  # more than it takes to write them

    monkeypatch.setattr(toy, "ensure_toy", with_a_rival)
    read = build_datasets("toy", tmp_path, tmp_path, toy_sizes=(3, 3, 3))
    assert [len(part) for part in read] == [15, 3, 3]
    assert os.waitpid(rivals[0], 0)[1] == 0
    assert len(json.loads((tmp_path / "toy_val.json").read_text())) == 6

"""The toy data: true and distinct captions, the same files everywhere, and the layout that the loaders read."""

import hashlib
import json
import math
import re
from collections import defaultdict

import pytest
from PIL import Image

from data import build_datasets
from data.captions import clean_caption
from data.toy import ensure_toy, main
from data.toy_scenes import BACKGROUNDS, COLOURS, MAX_WORDS, OUTLINES, RADII, draw_scene, make_example
from distill_utils.runs.errors import UserError

SIZES = (4, 2, 3)

SIZE_OF_WORD = {
    "small": "small",
    "little": "small",
    "tiny": "small",
    "medium": "medium",
    "medium sized": "medium",
    "large": "large",
    "big": "large",
}
NOUN = rf"(?:(?P<size>{'|'.join(sorted(SIZE_OF_WORD, reverse=True))}) )?(?P<colour>{'|'.join(COLOURS)}) (?P<kind>{'|'.join(OUTLINES)})"
PLACE = r"(?P<place>(?:in|at|on) the (?:top|bottom|upper|lower|left|right|middle|centre)(?: (?:left|right|middle|centre|side|corner))*)"
RELATION = (
    r"(?P<relation>(?:above|below|under)(?: and to the (?:left|right) of)?|(?:to the )?(?:left|right) of)"
)


@pytest.fixture(scope="module")
def gallery():
    return [make_example(0, "test", index) for index in range(500)]


def third(coordinate):
    return 0 if coordinate < 0.4 else 2 if coordinate > 0.6 else 1


def is_at(shape, place):
    words = set(place.split())
    row = 0 if words & {"top", "upper"} else 2 if words & {"bottom", "lower"} else None
    column = 0 if "left" in words else 2 if "right" in words else None
    if words & {"middle", "centre"}:
        row, column = (1 if told is None else told for told in (row, column))
    return row in (None, third(shape.y)) and column in (None, third(shape.x))


def are_related(a, b, relation):
    words, across, down = set(relation.split()), a.x - b.x, a.y - b.y
    true = [across < -0.05] * ("left" in words) + [across > 0.05] * ("right" in words)
    true += [down < -0.05] * ("above" in words) + [down > 0.05] * bool(words & {"below", "under"})
    if len(true) == 1:  # one direction alone: it must be the main one
        true.append((abs(across) > abs(down)) == bool(words & {"left", "right"}))
    return all(true)


def read_caption(caption):
    """The nouns, places and relations of a caption, in its order, and the backgrounds that it tells."""
    text = " ".join(clean_caption(caption).replace(",", " ").split())
    backgrounds = set()
    for name, background in BACKGROUNDS.items():
        if any(
            phrase in text
            for phrase in (
                *background.phrases,
                *(f"the background is {words}" for words in background.predicates),
            )
        ):
            backgrounds.add(name)
    return list(re.finditer(rf"\b(?:{NOUN}|{PLACE}|{RELATION})\b", text)), backgrounds


def fits(caption, scene):
    """Whether the caption names all shapes of the scene and no other, and all else that it says of them is
    true.
    """
    parts, backgrounds = read_caption(caption)
    by_name = {(shape.colour, shape.kind): shape for shape in scene.shapes}
    named = [(part["colour"], part["kind"]) for part in parts if part["kind"]]
    if sorted(named) != sorted(by_name) or not backgrounds <= {scene.background}:
        return False
    shape_of = [
        by_name.get((part["colour"], part["kind"])) for part in parts
    ]  # None for a place and a relation
    step = 1 if parts[0]["place"] else -1  # places first, or each after its noun
    for n, part in enumerate(parts):
        if part["size"] and SIZE_OF_WORD[part["size"]] != shape_of[n].size:
            return False
        if part["place"] and not is_at(shape_of[n + step], part["place"]):
            return False
        if part["relation"] and not are_related(shape_of[n - 1], shape_of[n + 1], part["relation"]):
            return False
    return True


def names(caption):
    return frozenset((part["colour"], part["kind"]) for part in read_caption(caption)[0] if part["kind"])


def files(folder):
    return {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_data(a, b):
    assert list(files(a)) == list(files(b))
    for name, path in files(a).items():
        if name.suffix == ".png":
            assert Image.open(path).tobytes() == Image.open(files(b)[name]).tobytes()
        else:
            assert path.read_bytes() == files(b)[name].read_bytes()


# ---- captions and scenes


def test_every_caption_is_true_and_survives_the_loaders_cut(gallery):
    for scene, captions in gallery:
        assert len({clean_caption(caption) for caption in captions}) == 5
        for caption in captions:
            assert fits(caption, scene), (caption, scene)
            assert len(clean_caption(caption, max_words=1000).split()) <= MAX_WORDS


LIES = (
    ("left", "right"),
    ("above", "below"),
    ("top", "bottom"),
    ("small", "large"),
    ("red", "blue"),
    ("star", "ring"),
    ("a white b", "a black b"),
)


@pytest.mark.parametrize("word, lie", LIES)
def test_a_changed_word_makes_a_caption_untrue(gallery, word, lie):
    pattern = re.compile(rf"\b{word}")
    lies = [
        (pattern.sub(lie, caption), scene)
        for scene, captions in gallery
        for caption in captions
        if pattern.search(caption)
    ]
    assert len(lies) > 50
    assert not [(caption, scene) for caption, scene in lies if fits(caption, scene)]


def test_captions_identify_their_image_in_a_gallery(gallery):
    """Of 2500 captions, seeds 0 to 5: all are the text of one image only, and 98.3 to 99.5 % are true of one
    image only.
    """
    images_of_text, images_of_names = defaultdict(set), defaultdict(set)
    for image, (scene, captions) in enumerate(gallery):
        images_of_names[frozenset((shape.colour, shape.kind) for shape in scene.shapes)].add(image)
        for caption in captions:
            images_of_text[clean_caption(caption)].add(image)
    every = [caption for _, captions in gallery for caption in captions]
    own_text = sum(len(images_of_text[clean_caption(caption)]) == 1 for caption in every)
    own_fit = sum(
        sum(fits(caption, gallery[image][0]) for image in images_of_names[names(caption)]) == 1
        for caption in every
    )
    assert own_text / len(every) > 0.99
    assert own_fit / len(every) > 0.97


def test_captions_vary_in_form_and_in_detail(gallery):
    every = [caption for _, captions in gallery for caption in captions]
    forms = {re.sub(NOUN, "NOUN", clean_caption(caption)) for caption in every}
    assert len(forms) > 1000  # of 2500
    found = [read_caption(caption) for caption in every]
    sized = [any(part["size"] for part in parts) for parts, _ in found]
    placed = [any(part["place"] or part["relation"] for part in parts) for parts, _ in found]
    grounded = [bool(backgrounds) for _, backgrounds in found]
    for told in (sized, placed, grounded):
        assert 0.4 < sum(told) / len(every) < 0.8
    assert sum(any(details) for details in zip(sized, placed, grounded)) / len(every) > 0.8


def test_shapes_keep_apart_inside_the_image_and_clear_of_the_background(gallery):
    for scene, _ in gallery:
        assert 1 <= len(scene.shapes) <= 3
        for shape in scene.shapes:
            radius = RADII[shape.size]
            assert radius < min(shape.x, shape.y) and max(shape.x, shape.y) < 1 - radius
            assert min(math.dist(shape.rgb, tone) for tone in BACKGROUNDS[scene.background].tones) > 85
            for other in scene.shapes:
                gap = math.dist((shape.x, shape.y), (other.x, other.y)) - radius - RADII[other.size]
                assert other is shape or gap > 0


@pytest.mark.parametrize("resolution", [32, 72])
def test_drawn_colours_are_those_that_captions_name(gallery, resolution):
    for scene, _ in gallery[:100]:
        image = draw_scene(scene, resolution=resolution)
        assert image.size == (resolution, resolution) and image.mode == "RGB"
        for shape in scene.shapes:
            if shape.kind == "ring" and shape.size != "large" and resolution < 72:
                continue  # so thin a band has no pixel of its colour alone
            x = shape.x + 0.775 * RADII[shape.size] * (shape.kind == "ring")  # a ring is empty at its centre
            pixel = image.getpixel((int(x * resolution), int(shape.y * resolution)))
            assert min(COLOURS, key=lambda name: math.dist(COLOURS[name], pixel)) == shape.colour


def test_outlines_reach_out_to_their_radius():
    for kind, outline in OUTLINES.items():
        assert 0.9 < max(math.hypot(x, y) for x, y in outline) < 1.01, kind


# ---- files


def test_captions_are_the_same_on_every_machine():
    text = json.dumps([make_example(0, "train", index)[1] for index in range(100)])
    assert (
        hashlib.sha256(text.encode()).hexdigest()[:16] == "096a93c3af4fe737"
    )  # if this changes on purpose, raise _VERSION


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

"""Captions, transforms, and the reader of annotation files, on made-up files and on the real ones."""

import json

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data import build_datasets
from data.captions import clean_caption
from data.karpathy import GalleryDataset, PairDataset, read_annotations, read_gallery, read_pairs
from data.transforms import CLIP_MEAN, CLIP_STD, denormalise, normalise, test_transform, train_transform
from distill_utils.runs.errors import UserError

test_transform.__test__ = False  # a transform for the test split, not a test


@pytest.mark.parametrize(
    "caption, cleaned",
    [
        ("A man, a plan: (a canal)!  Panama.", "a man, a plan a canal panama"),
        ('Two\tdogs\n  run ~ "fast" * #1;', "two dogs run fast 1"),
        ("it's a well-known what?", "it's a well-known what?"),
        ("", ""),
        (" ".join(map(str, range(40))), " ".join(map(str, range(30)))),
    ],
)
def test_clean_caption(caption, cleaned):
    assert clean_caption(caption) == cleaned


def test_clean_caption_takes_another_limit():
    assert clean_caption("One two three", max_words=2) == "one two"


def picture(width=50, height=30):
    gradient = torch.arange(width).repeat(height, 1) * 255 // width
    return v2.functional.to_pil_image(
        torch.stack([gradient, gradient.flip(1), torch.full_like(gradient, 90)]).to(torch.uint8)
    )


@pytest.mark.parametrize("transform", [train_transform, test_transform])
def test_transforms_give_uint8_squares(transform):
    torch.manual_seed(0)
    for _ in range(20):
        image = transform(24)(picture())
        assert image.shape == (3, 24, 24) and image.dtype == torch.uint8


def test_the_train_transform_varies_and_the_test_transform_does_not():
    torch.manual_seed(0)
    train = {train_transform(16)(picture()).numpy().tobytes() for _ in range(10)}
    test = {test_transform(16)(picture()).numpy().tobytes() for _ in range(3)}
    assert len(train) > 5 and len(test) == 1


def test_strong_draws_the_named_operations_at_half_strength():
    steps = train_transform(16, "strong").transforms
    augment = next(step for step in steps if isinstance(step, v2.RandAugment))
    assert set(augment._AUGMENTATION_SPACE) == {
        "Identity",
        "AutoContrast",
        "Equalize",
        "Brightness",
        "Sharpness",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
        "Rotate",
    }
    magnitudes = augment._AUGMENTATION_SPACE["Rotate"][0](augment.num_magnitude_bins, 16, 16)
    assert augment.num_ops == 2 and float(magnitudes[augment.magnitude]) == pytest.approx(
        float(magnitudes[-1]) / 2
    )


def test_normalise_is_clips_and_denormalise_undoes_it():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    normal = normalise(images)
    assert float(normal[1, 2, 0, 0]) == pytest.approx(
        (images[1, 2, 0, 0].item() / 255 - CLIP_MEAN[2]) / CLIP_STD[2], abs=1e-5
    )
    assert torch.allclose(denormalise(normal) * 255, images.float(), atol=1e-3)


def write_flickr8k(folder):
    """Two train images with three captions, a val and a test gallery of odd caption counts."""
    for name in ("a", "b", "c"):
        picture().save(folder / f"{name}.png")
    train = [
        {"image": "a.png", "caption": "A dog.", "image_id": "a"},
        {"image": "b.png", "caption": "A cat!", "image_id": "b"},
        {"image": "a.png", "caption": "One DOG", "image_id": "a"},
    ]
    gallery = [
        {"image": "c.png", "caption": ["first", "second", "third"]},
        {"image": "a.png", "caption": ["only"]},
    ]
    for split, entries in (("train", train), ("val", gallery), ("test", gallery[:1])):
        (folder / f"flickr8k_{split}.json").write_text(json.dumps(entries))


def test_build_datasets_reads_pairs_and_galleries(tmp_path):
    write_flickr8k(tmp_path)
    train, val, test = build_datasets("flickr8k", tmp_path, tmp_path, image_size=8, augmentation=None)
    assert (len(train), len(train.image_paths), len(val), len(test)) == (3, 2, 2, 1)
    assert train.captions == ["a dog", "a cat", "one dog"] and train.image_index.tolist() == [0, 1, 0]
    assert val.captions == ["first", "second", "third", "only"] and val.txt2img.tolist() == [0, 0, 0, 1]
    image, pair = train[2]
    assert pair == 2 and torch.equal(image, train[0][0]) and torch.equal(val[1], image)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not a JSON file"),
        ("[]", "non-empty JSON list"),
        ('{"image": 1}', "non-empty JSON list"),
        ('[{"image": "a.png"}]', "entry 0: 'caption' is missing"),
        ("[3]", "entry 0: 'image' is missing"),
        ('[{"image": "a.png", "caption": []}]', "has no caption"),
        ('[{"image": "a.png", "caption": [7]}]', "must be a string, not 7"),
    ],
)
def test_a_bad_annotation_file_is_one_sentence(tmp_path, content, words):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_gallery(tmp_path / "bad.json", tmp_path)
    assert "bad.json" in str(error.value)


def test_missing_and_broken_images_are_one_sentence(tmp_path):
    write_flickr8k(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").unlink()
    train = PairDataset(read_pairs(tmp_path / "flickr8k_train.json", tmp_path), test_transform(8))
    with pytest.raises(UserError, match="a.png cannot be read as an image"):
        train[0]
    with pytest.raises(UserError, match="b.png does not exist"):
        train[1]


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    write_flickr8k(tmp_path)
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 100
    )  # the picture has 1,500: beyond twice the limit, Pillow's error
    with pytest.raises(UserError, match="a.png cannot be read as an image"):
        PairDataset(read_pairs(tmp_path / "flickr8k_train.json", tmp_path), test_transform(8))[0]


def test_unknown_data_set():
    with pytest.raises(UserError, match="'imagenet' is unknown"):
        build_datasets("imagenet")


@pytest.mark.parametrize(
    "file, images, captions",
    [
        ("flickr30k_val.json", 1014, 5070),
        ("flickr30k_test.json", 1000, 5000),
        ("coco_karpathy_val.json", 5000, 25010),
        ("coco_karpathy_test.json", 5000, 25010),
    ],
)
def test_the_real_annotation_files_parse(shared, file, images, captions):
    gallery = GalleryDataset(read_gallery(shared / "annotations" / file, "images"), test_transform(8))
    assert (len(gallery), len(gallery.captions)) == (images, captions)
    assert torch.equal(gallery.txt2img.unique(), torch.arange(images))
    assert all(gallery.captions) and max(len(caption.split()) for caption in gallery.captions) <= 30


def test_real_photos_load(shared):
    root = shared / "flickr8k_1k"
    train, val, test = build_datasets("flickr8k", root, root, image_size=32)
    assert (len(train.image_paths), len(train), len(val), len(test)) == (600, 3000, 80, 120)
    assert train[17][0].shape == (3, 32, 32) and float(val[3].float().std()) > 5
    assert len(read_annotations(root / "flickr8k_train.json", ("image",))) == 3000

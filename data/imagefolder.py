"""One's own photos: a folder with `metadata.jsonl`, the layout that Hugging Face calls imagefolder."""

import hashlib
import os
from collections import defaultdict
from pathlib import PurePosixPath

from data.captions import clean_caption
from data.karpathy import SPLITS, caption_text, require_inside
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json_lines

METADATA = "metadata.jsonl"
_FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}


def read_imagefolder(image_root, ann_root):
    """Train pairs [(image file, caption)], and of val and test [(image file, captions)].

    A line of metadata.jsonl is {"file_name", "text"}: a path from the folder of the images, and a caption or
    a list of them; lines of one file_name are captions of one image. There is one such file in `ann_root`, or
    one in each of its folders train, val (or validation) and test, whose images are in the folders of those
    names in `image_root`. A split without a folder takes a tenth of the train images, see `_divide`. Raises
    UserError for a bad line, an image that is not there, and too few images.
    """
    folders = {split: _folder(ann_root, split) for split in SPLITS}
    if not folders["train"]:
        if not (ann_root / METADATA).is_file():
            raise UserError(
                f"Neither {ann_root / METADATA} nor {ann_root / 'train' / METADATA} exists: each image needs "
                'a line {"file_name": ..., "text": ...}.'
            )
        folders = {"train": ".", "val": None, "test": None}
    splits = {
        split: _read_metadata(ann_root / folder / METADATA, image_root / folder)
        for split, folder in folders.items()
        if folder
    }
    absent = [split for split in SPLITS if split not in splits]
    splits |= _divide(splits["train"], absent, image_root / folders["train"])
    pairs = [(image, caption) for image, captions in splits["train"].items() for caption in captions]
    return pairs, list(splits["val"].items()), list(splits["test"].items())


def _folder(root, split):
    return next((name for name in _FOLDERS[split] if (root / name / METADATA).is_file()), None)


def _read_metadata(path, folder):
    """{image file: captions}, in the order of the lines."""
    images = defaultdict(list)
    for number, value in read_json_lines(path):
        where = f"{path}, line {number}"
        missing = [key for key in ("file_name", "text") if not isinstance(value, dict) or key not in value]
        if missing:
            raise UserError(f"{where}: {missing[0]!r} is missing; every line needs file_name and text.")
        require_inside(value["file_name"], where)
        image = folder / PurePosixPath(value["file_name"])
        if image not in images and not image.is_file():
            raise UserError(f"{where}: {image} does not exist.")
        texts = value["text"] if isinstance(value["text"], list) else [value["text"]]
        for text in texts:
            if not clean_caption(caption_text(text, where)):
                raise UserError(f"{where}: the text {text!r} has no words.")
        if not texts:
            raise UserError(f"{where}: {value['file_name']!r} has no text.")
        images[image] += texts
    if not images:
        raise UserError(f"{path} has no line: each image needs one, with file_name and text.")
    return dict(images)


def _divide(images, absent, folder):
    """Every split of `absent` takes a tenth of the images of train, at least one; {split: images}, train too.

    Which ones follows from their names alone, wherever the folder is. Copies of one photo stay together.
    """
    if not absent:
        return {}
    photos = _photos(images)
    if len(photos) <= len(absent):
        raise UserError(
            f"{folder} has {len(photos)} different images, and {len(absent) + 1} are the fewest that can be "
            f"shared among train, {' and '.join(absent)}."
        )
    photos.sort(key=lambda copies: hashlib.sha256(min(_name(copy, folder) for copy in copies)).digest())
    size = max(1, round(len(photos) / 10))
    split_of = {}
    for place, split in enumerate(absent):
        for copies in photos[place * size : (place + 1) * size]:
            split_of |= dict.fromkeys(copies, split)
    divided = {split: {} for split in ("train", *absent)}
    for image, captions in images.items():
        divided[split_of.get(image, "train")][image] = captions
    return divided


def _photos(images):
    """Lists of the image files that are the same, byte for byte. Only files of one size are looked into."""
    of_size, photos = defaultdict(list), defaultdict(list)
    for image in images:
        of_size[image.stat().st_size].append(image)
    for size, files in of_size.items():
        for image in files:
            photos[size, _digest(image) if len(files) > 1 else None].append(image)
    return list(photos.values())


def _digest(image):
    with open(image, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _name(image, folder):
    return os.fsencode(image.relative_to(folder).as_posix())

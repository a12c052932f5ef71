"""Karpathy-style annotation files of Flickr30k, COCO, Flickr8k, toy: train pairs and galleries."""

from copy import copy
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch.utils.data import Dataset

from data.captions import clean_caption
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json

# data set -> (prefix of its annotation files, folder of images and folder of annotations under
# distill_utils/data)
DATASETS = {
    "flickr": ("flickr30k", "Flickr30k", "Flickr30k_ann"),
    "coco": ("coco_karpathy", "COCO", "COCO_ann"),
    "flickr8k": ("flickr8k", "Flickr8k", "Flickr8k_ann"),
    "toy": ("toy", "Toy", "Toy"),
}


def read_annotations(path, keys):
    """A JSON list of objects that hold `keys`, "image" with a path under the image root; UserError names the
    file and the first bad entry.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give the folder of the annotation files with --ann_root.")
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} must hold a non-empty JSON list of annotations, one object per entry.")
    for number, entry in enumerate(entries):
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(
                f"{path}, entry {number}: {missing[0]!r} is missing; every entry needs {', '.join(keys)}."
            )
        if "image" in keys:
            _require_inside(entry["image"], path, number)
    return entries


def _require_inside(name, path, number):
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts:
        raise UserError(
            f"{path}, entry {number}: an image is a path under the folder of images, not {name!r}."
        )


def _text(value, path, number):
    if not isinstance(value, str):
        raise UserError(f"{path}, entry {number}: a caption must be a string, not {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON can name
        raise UserError(
            f"{path}, entry {number}: the caption {value!r} is not text: {error.reason}."
        ) from None
    return value


def load_image(path):
    """An RGB PIL image, wholly decoded; UserError if it is missing, broken or absurdly large."""
    try:
        with Image.open(path) as image:
            if (
                Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS
            ):  # Pillow only warns up to twice this
                raise ValueError(
                    f"it has {image.width} x {image.height} pixels, more than the "
                    f"{Image.MAX_IMAGE_PIXELS:,} allowed"
                )
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the folder of the images with --image_root.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}.") from None


class PairDataset(Dataset):
    """All image-caption pairs of a train split.

    `image_paths` [I] unique images, `captions` [P] cleaned, `image_index` LongTensor [P]: the image of each
    pair. Item p is (uint8 [3, H, W], p): texts are looked up by p, as embeddings.
    """

    def __init__(self, annotation_file, image_root, transform, max_words=30):
        annotation_file, image_root = Path(annotation_file), Path(image_root)
        entries = read_annotations(annotation_file, ("image", "caption", "image_id"))
        position = {}
        image_index = []
        for entry in entries:
            image_index.append(position.setdefault(entry["image"], len(position)))
        self.image_paths = [image_root / name for name in position]
        self.image_index = torch.tensor(image_index)
        self.captions = [
            clean_caption(_text(entry["caption"], annotation_file, n), max_words)
            for n, entry in enumerate(entries)
        ]
        self.transform = transform

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, pair):
        return self.transform(load_image(self.image_paths[self.image_index[pair]])), pair

    def subset(self, pairs):
        """The same with the pairs `pairs` (LongTensor) alone, in that order, and their images."""
        part = copy(self)
        images, part.image_index = torch.unique(self.image_index[pairs], return_inverse=True)
        part.image_paths = [self.image_paths[image] for image in images]
        part.captions = [self.captions[pair] for pair in pairs]
        return part


class GalleryDataset(Dataset):
    """The images of a val or test split, with every caption: item i is the uint8 image [3, H, W].

    `image_paths` [I], `captions` [M] cleaned, `txt2img` LongTensor [M]: the image of each caption; any number
    of captions per image.
    """

    def __init__(self, annotation_file, image_root, transform, max_words=30):
        annotation_file, image_root = Path(annotation_file), Path(image_root)
        self.image_paths, self.captions, txt2img = [], [], []
        for number, entry in enumerate(read_annotations(annotation_file, ("image", "caption"))):
            captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
            if not captions:
                raise UserError(
                    f"{annotation_file}, entry {number}: image {entry['image']!r} has no caption, so it "
                    "cannot be retrieved."
                )
            self.image_paths.append(image_root / entry["image"])
            self.captions += [
                clean_caption(_text(caption, annotation_file, number), max_words) for caption in captions
            ]
            txt2img += [number] * len(captions)
        self.txt2img = torch.tensor(txt2img)
        self.transform = transform

    def __len__(self):
        return len(self.image_paths)

    def __getitem__(self, index):
        return self.transform(load_image(self.image_paths[index]))

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
SPLITS = ("train", "val", "test")


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
            require_inside(entry["image"], f"{path}, entry {number}")
    return entries


def require_inside(name, where):
    """UserError, which begins with `where`, unless `name` is a path under the folder of images."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    if not parts or parts[0] == "/" or ".." in parts:
        raise UserError(f"{where}: an image is a path under the folder of images, not {name!r}.")


def caption_text(value, where):
    """The caption `value` if it is text; UserError, which begins with `where`, if not."""
    if not isinstance(value, str):
        raise UserError(f"{where}: a caption must be a string, not {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON can name
        raise UserError(f"{where}: the caption {value!r} is not text: {error.reason}.") from None
    return value


def read_pairs(path, image_root):
    """The (image file, caption) pairs of a train annotation file, in its order."""
    entries = read_annotations(path, ("image", "caption", "image_id"))
    return [
        (Path(image_root) / entry["image"], caption_text(entry["caption"], f"{path}, entry {number}"))
        for number, entry in enumerate(entries)
    ]


def read_gallery(path, image_root):
    """The (image file, captions) of a val or test annotation file, in its order."""
    images = []
    for number, entry in enumerate(read_annotations(path, ("image", "caption"))):
        where = f"{path}, entry {number}"
        captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
        if not captions:
            raise UserError(f"{where}: image {entry['image']!r} has no caption, so it cannot be retrieved.")
        images.append((Path(image_root) / entry["image"], [caption_text(c, where) for c in captions]))
    return images


def read_splits(files, image_root):
    """Of the train, val and test annotation `files`: pairs, and two galleries."""
    train, *held_out = files
    return read_pairs(train, image_root), *(read_gallery(file, image_root) for file in held_out)


def own_annotations(image_root, ann_root):
    """The same of the one `train.json` or `*_train.json` in `ann_root`, and so on for val and test."""
    return read_splits([_own_file(Path(ann_root), split) for split in SPLITS], image_root)


def _own_file(folder, split):
    found = sorted({*folder.glob(f"{split}.json"), *folder.glob(f"*_{split}.json")})
    if len(found) != 1:
        held = ", ".join(file.name for file in found) or "none"
        raise UserError(
            f"{folder} must hold one annotation file {split}.json or NAME_{split}.json, and it holds {held}: "
            "give their folder with --ann_root."
        )
    return found[0]


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

    def __init__(self, pairs, transform, max_words=30):
        """pairs: [P] of (image file, caption)."""
        position = {}
        index = [position.setdefault(image, len(position)) for image, _ in pairs]
        self.image_paths, self.image_index = list(position), torch.tensor(index)
        self.captions = [clean_caption(caption, max_words) for _, caption in pairs]
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

    def __init__(self, images, transform, max_words=30):
        """images: [I] of (image file, captions)."""
        self.image_paths = [image for image, _ in images]
        self.captions = [clean_caption(text, max_words) for _, captions in images for text in captions]
        counts = torch.tensor([len(captions) for _, captions in images])
        self.txt2img = torch.arange(len(images)).repeat_interleave(counts)
        self.transform = transform

    def __len__(self):
        return len(self.image_paths)

    def __getitem__(self, index):
        return self.transform(load_image(self.image_paths[index]))

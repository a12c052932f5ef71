"""Image-text data sets: `build_datasets` reads any of them from its images and annotation files."""

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from data.karpathy import DATASETS, GalleryDataset, PairDataset
from data.transforms import test_transform, train_transform
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked

DATA_FOLDER = Path("distill_utils/data")


class Datasets(NamedTuple):
    train: PairDataset
    val: GalleryDataset
    test: GalleryDataset


def build_datasets(
    name, image_root=None, ann_root=None, *, image_size=224, augmentation="published", toy_sizes=None
):
    """The train pairs and the val and test galleries of data set `name` (a key of DATASETS).

    `augmentation`: of the train images, one of AUGMENTATIONS or None. `toy_sizes`: images of the toy splits.
    The roots default to the data set's folders under distill_utils/data; `toy` is written there on first use.
    Raises UserError for an unknown name and for missing or malformed files.
    """
    if name not in DATASETS:
        raise UserError(f"--dataset {name!r} is unknown: expected one of {', '.join(DATASETS)}.")
    prefix, image_folder, ann_folder = DATASETS[name]
    image_root = Path(image_root) if image_root else DATA_FOLDER / image_folder
    ann_root = Path(ann_root) if ann_root else DATA_FOLDER / ann_folder
    with _toy(image_root, ann_root, toy_sizes) if name == "toy" else nullcontext():
        return _read(prefix, image_root, ann_root, image_size, augmentation)


@contextmanager
def _toy(image_root, ann_root, sizes):
    """The toy data while their annotations are read: another process may want other sizes there."""
    from data.toy import SIZES, ensure_toy  # here, so that `python -m data.toy` is not imported twice

    read_only = ann_root.is_dir() and not os.access(ann_root, os.W_OK)
    with nullcontext() if read_only else locked(ann_root / ".lock"):
        ensure_toy(image_root, ann_root, sizes or SIZES)
        yield


def _read(prefix, image_root, ann_root, image_size, augmentation):
    train, val, test = (ann_root / f"{prefix}_{split}.json" for split in ("train", "val", "test"))
    plain = test_transform(image_size)
    augmented = train_transform(image_size, augmentation) if augmentation else plain
    return Datasets(
        PairDataset(train, image_root, augmented),
        GalleryDataset(val, image_root, plain),
        GalleryDataset(test, image_root, plain),
    )

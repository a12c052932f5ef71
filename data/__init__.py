"""Image-text data sets: `build_datasets` reads any of them from its images and annotation files."""

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from data.imagefolder import read_imagefolder
from data.karpathy import DATASETS, SPLITS, GalleryDataset, PairDataset, own_annotations, read_splits
from data.transforms import test_transform, train_transform
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked

DATA_FOLDER = Path("distill_utils/data")
# One's own photos: the layout of their captions -> its reader(image_root, ann_root).
OWN = {"imagefolder": read_imagefolder, "karpathy": own_annotations}


class Datasets(NamedTuple):
    train: PairDataset
    val: GalleryDataset
    test: GalleryDataset


def build_datasets(
    name, image_root=None, ann_root=None, *, image_size=224, augmentation="published", toy_sizes=None
):
    """The train pairs and the val and test galleries of data set `name`, a key of DATASETS or OWN.

    `augmentation`: of the train images, one of AUGMENTATIONS or None. `toy_sizes`: images of the toy splits.
    The roots default to the data set's folders under distill_utils/data, ann_root of OWN to image_root; `toy`
    is written there on first use. Raises UserError for an unknown name and for missing or malformed files.
    """
    if name in OWN:
        if not image_root:
            raise UserError(f"--dataset {name} reads your own photos: give their folder with --image_root.")
        splits = OWN[name](Path(image_root), Path(ann_root or image_root))
    elif name in DATASETS:
        splits = _read(name, image_root, ann_root, toy_sizes)
    else:
        known = ", ".join((*DATASETS, *OWN))
        raise UserError(f"--dataset {name!r} is unknown: expected one of {known}.")
    plain = test_transform(image_size)
    augmented = train_transform(image_size, augmentation) if augmentation else plain
    train, val, test = splits
    return Datasets(PairDataset(train, augmented), GalleryDataset(val, plain), GalleryDataset(test, plain))


def _read(name, image_root, ann_root, toy_sizes):
    prefix, image_folder, ann_folder = DATASETS[name]
    image_root = Path(image_root) if image_root else DATA_FOLDER / image_folder
    ann_root = Path(ann_root) if ann_root else DATA_FOLDER / ann_folder
    with _toy(image_root, ann_root, toy_sizes) if name == "toy" else nullcontext():
        return read_splits([ann_root / f"{prefix}_{split}.json" for split in SPLITS], image_root)


@contextmanager
def _toy(image_root, ann_root, sizes):
    """The toy data while their annotations are read: another process may want other sizes there."""
    from data.toy import SIZES, ensure_toy  # here, so that `python -m data.toy` is not imported twice

    read_only = ann_root.is_dir() and not os.access(ann_root, os.W_OK)
    with nullcontext() if read_only else locked(ann_root / ".lock"):
        ensure_toy(image_root, ann_root, sizes or SIZES)
        yield

"""Toy data: rendered scenes of coloured shapes with five true captions each, in the layout of Flickr30k.

python -m data.toy --image_root distill_utils/data/Toy --ann_root distill_utils/data/Toy --toy_size
3000,300,500
"""

import argparse
import os
import sys
from pathlib import Path

from tqdm import tqdm

from data.karpathy import SPLITS
from data.toy_scenes import draw_scene, make_example
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.writing import partial_path, remove_orphans, write_json

SIZES = (3000, 300, 500)
_FOLDER = "distill_utils/data/Toy"
_VERSION = 1  # of scenes, drawings and captions together: raise it when the same seed gives something else


def _image_name(split, index):
    return f"images/{split}_{index:05d}.png"


def _annotation_name(split):
    return f"toy_{split}.json"


def _write_image(path, scene):
    # As writing.atomic_path, which would also wait for the disk, 3,800 times. The name carries the process:
    # two may draw at once.
    partial = partial_path(path)
    draw_scene(scene).save(partial, format="PNG")
    os.replace(partial, path)


def _annotations(split, examples):
    """Karpathy entries: one per caption for train, one per image for val and test."""
    if split != "train":
        return [
            {"image": _image_name(split, index), "caption": captions}
            for index, (_, captions) in enumerate(examples)
        ]
    return [
        {"image": _image_name(split, index), "caption": caption, "image_id": f"{split}_{index:05d}"}
        for index, (_, captions) in enumerate(examples)
        for caption in captions
    ]


def _check_sizes(sizes):
    listed = isinstance(sizes, (tuple, list))
    if not listed or len(sizes) != len(SPLITS) or not all(type(size) is int and size > 0 for size in sizes):
        text = ",".join(map(str, sizes)) if listed else sizes
        raise UserError(f"The toy data takes three positive numbers of images, TRAIN,VAL,TEST, not {text!r}.")
    return tuple(sizes)


def parse_sizes(text):
    """The text "3000,300,500" as (3000, 300, 500); UserError if it is not three positive ints."""
    return _check_sizes([int(size) if size.strip().isdecimal() else size for size in text.split(",")])


def _meta(sizes, seed, complete):
    return {"version": _VERSION, "sizes": list(sizes), "seed": seed, "complete": complete}


def _read_meta(ann_root):
    """What toy_meta.json says, None before a first run; UserError if files of these names are not ours."""
    meta_file = ann_root / "toy_meta.json"
    meta = read_json(meta_file)
    if meta is None:
        for name in map(_annotation_name, SPLITS):
            if (ann_root / name).exists():
                raise UserError(
                    f"{ann_root / name} has no toy_meta.json beside it, so it is not overwritten: move it "
                    "or give another --ann_root."
                )
    elif not isinstance(meta, dict) or not isinstance(meta.get("sizes"), list):
        raise UserError(
            f"{meta_file} is not as the toy data writes it: remove it and the toy_*.json beside it, or give "
            "another --ann_root."
        )
    return meta


def _present_sizes(ann_root, seed):
    """Sizes of the complete data set of this seed and version in `ann_root`, zeros if there is none.

    An interrupted run counts as none: its images may be of two data sets, and drawing all of them again takes
    seconds.
    """
    meta = _read_meta(ann_root)
    if meta is None or meta != _meta(meta["sizes"], seed, complete=True):
        return (0,) * len(SPLITS)
    return tuple(meta["sizes"])


def _all_exist(image_root, ann_root, sizes):
    images = (
        image_root / _image_name(split, index) for split, size in zip(SPLITS, sizes) for index in range(size)
    )
    annotations = (ann_root / _annotation_name(split) for split in SPLITS)
    return all(path.exists() for path in (*annotations, *images))


def _write_split(image_root, ann_root, split, size, seed, kept, bar):
    """One annotation file and its images; of the first `kept` images only those that are missing."""
    examples = []
    for index in range(size):
        scene, captions = make_example(seed, split, index)
        examples.append((scene, captions))
        path = image_root / _image_name(split, index)
        if index >= kept or not path.exists():
            _write_image(path, scene)
        bar.update()
    write_json(ann_root / _annotation_name(split), _annotations(split, examples))


def _write(image_root, ann_root, sizes, seed, present):
    for folder in (image_root / "images", ann_root):
        folder.mkdir(parents=True, exist_ok=True)
        remove_orphans(folder)
    write_json(ann_root / "toy_meta.json", _meta(sizes, seed, complete=False))
    with tqdm(total=sum(sizes), desc="toy data", unit="image") as bar:
        for split, size, kept in zip(SPLITS, sizes, present):
            _write_split(image_root, ann_root, split, size, seed, kept, bar)
    write_json(ann_root / "toy_meta.json", _meta(sizes, seed, complete=True))


def ensure_toy(image_root, ann_root, sizes=SIZES, seed=0):
    """Write the data set unless exactly this one is already there.

    `sizes`: numbers of train, val and test images. Images go to `image_root`/images, and toy_train.json,
    toy_val.json, toy_test.json and toy_meta.json to `ann_root`; growing the sizes keeps the earlier images.
    Raises UserError for sizes that are not three positive ints, for annotation files that are not ours, and
    for folders that cannot be written.
    """
    sizes = _check_sizes(sizes)
    image_root, ann_root = Path(image_root), Path(ann_root)
    try:
        present = _present_sizes(ann_root, seed)
        if present != sizes or not _all_exist(image_root, ann_root, sizes):
            _write(image_root, ann_root, sizes, seed, present)
    except OSError as error:
        raise UserError(f"The toy data cannot be written: {error}.") from None


def main(argv=None):
    """Write the data set that the command line names."""
    parser = argparse.ArgumentParser(description="Write the toy data set in the layout of Flickr30k.")
    parser.add_argument("--image_root", default=_FOLDER, help="folder of the images (default: %(default)s)")
    parser.add_argument(
        "--ann_root", default=_FOLDER, help="folder of the annotation files (default: %(default)s)"
    )
    parser.add_argument(
        "--toy_size", default=",".join(map(str, SIZES)), help="images, TRAIN,VAL,TEST (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="scenes, drawings and captions follow from it (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    ensure_toy(args.image_root, args.ann_root, parse_sizes(args.toy_size), args.seed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

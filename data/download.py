"""Fetch what the published recipes need: `python -m data.download flickr_ann coco_ann coco bert nfnet`."""

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

from data import DATA_FOLDER
from data.fetching import Known, fetch, unpack
from data.karpathy import DATASETS
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked
from distill_utils.runs.signals import run_program
from distill_utils.runs.writing import writing

_BERT = "google-bert/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594"
_ANNOTATIONS = "sfr-vision-language-research/datasets"


class Thing(NamedTuple):
    """Files of one host: name -> Known, at `<host>/<path>/<name>`.

    They go to `folder` of the data folder, or of the checkpoint folder; images: of zips, which are unpacked
    there, how many each folder inside must then hold.
    """

    host: str
    path: str
    folder: str
    files: dict
    checkpoint: bool = False
    images: dict | None = None


# Sizes and digests: COCO's and BERT's as they are published; of Flickr30k's val and test those of the files
# that this code was tried with; timm puts the first digits of the digest into the file's name.
THINGS = {
    "flickr_ann": Thing(
        "https://storage.googleapis.com",
        _ANNOTATIONS,
        DATASETS["flickr"][2],
        {
            "flickr30k_train.json": Known(entries=145_000),
            "flickr30k_val.json": Known(404_171, "md5:db0984773487b861ec1dd16a8d5f7060", 1_014),
            "flickr30k_test.json": Known(396_858, "md5:a1a112b1d04d838dc026a9d2435e2ef9", 1_000),
        },
    ),
    "coco_ann": Thing(
        "https://storage.googleapis.com",
        _ANNOTATIONS,
        DATASETS["coco"][2],
        {
            "coco_karpathy_train.json": Known(digest="md5:aa31ac474cf6250ebb81d18348a07ed8"),
            "coco_karpathy_val.json": Known(1_735_981, "md5:b273847456ef5580e33713b1f7de52a0", 5_000),
            "coco_karpathy_test.json": Known(1_735_468, "md5:3ff34b0ef2db02d01c37399f6a2a6cd1", 5_000),
        },
    ),
    "coco": Thing(
        "http://images.cocodataset.org",  # its certificate is of another name
        "zips",
        DATASETS["coco"][1],
        {
            "train2014.zip": Known(13_510_573_713, "md5:0da8c0bd3d6becc4dcb32757491aca88"),
            "val2014.zip": Known(6_645_013_297, "md5:a3d79f5ed8d289b7a7554ce06a5782b3"),
        },
        images={"train2014": 82_783, "val2014": 40_504},
    ),
    "bert": Thing(
        "https://huggingface.co",
        _BERT,
        "bert-base-uncased",
        {
            "config.json": Known(
                570, "sha256:7160e1553ad2ca51d8c1cb066be533db31826e12d173824c1bb0cb1a4f187d20"
            ),
            "tokenizer_config.json": Known(
                48, "sha256:a025160ef0431f1a392f6f050c1310f4c5d9fb6f275932dbccba73c4d214bf10"
            ),
            "tokenizer.json": Known(
                466_062, "sha256:ce64fce797c24f68df90b40a3f74f579b336a493db14bd583fd520ea0d8c9a98"
            ),
            "vocab.txt": Known(
                231_508, "sha256:07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
            ),
            "model.safetensors": Known(
                440_449_768, "sha256:68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"
            ),
        },
        checkpoint=True,
    ),
    "nfnet": Thing(
        "https://github.com",
        "huggingface/pytorch-image-models/releases/download/v0.1-weights",
        "",
        {"nfnet_l0_ra2-45c6688d.pth": Known(digest="sha256:45c6688d")},
        checkpoint=True,
    ),
}
BY_HAND = "flickr"  # its images are given out to those who ask
_FLICKR_IMAGES = 31_783


def get(name, data_dir, checkpoint_dir, mirror=None, announce=print):
    """Fetch everything of the thing `name` that is not there yet. `mirror` takes the place of its host."""
    if name == BY_HAND:
        announce(_by_hand(data_dir))
        return
    thing = THINGS[name]
    folder = (checkpoint_dir if thing.checkpoint else data_dir) / thing.folder
    address = f"{(mirror or thing.host).rstrip('/')}/{thing.path}"
    for file, known in thing.files.items():
        if thing.images:
            _get_images(f"{address}/{file}", folder, Path(file).stem, known, thing.images, announce)
        else:
            fetch(f"{address}/{file}", folder / file, known, announce)


def _get_images(url, folder, inside, known, images, announce):
    """The images of a zip at `folder/inside`. The zip goes when all are there: it is as large as they are."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f".{inside}.lock"):
        if _count_images(folder / inside) >= images[inside]:
            announce(f"{folder / inside} is there already")
            return
        archive = folder / f"{inside}.zip"
        fetch(url, archive, known, announce)
        unpack(archive, folder)
        found = _count_images(folder / inside)
        if found < images[inside]:
            raise UserError(
                f"{folder / inside} holds {found:,} images after {archive} was unpacked, not "
                f"{images[inside]:,}."
            )
        archive.unlink()


def _count_images(folder):
    return sum(name.endswith(".jpg") for name in os.listdir(folder)) if folder.is_dir() else 0


def _by_hand(data_dir):
    folder = data_dir / DATASETS[BY_HAND][1] / "flickr30k-images"
    return (
        "The images of Flickr30k are given to whoever asks for them with the form at "
        f"https://shannon.cs.illinois.edu/DenotationGraph/: put the {_FLICKR_IMAGES:,} .jpg files into "
        f"{folder} ({_count_images(folder):,} are there)."
    )


def _web_address(text):
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"expected an address that begins with http, not {text!r}")
    return text


def make_parser():
    parser = flags.Parser(__doc__)
    names = [*THINGS, BY_HAND]
    what = f"what to fetch: {', '.join(names)} (says how its images are had)"
    parser.add_argument("what", nargs="+", choices=names, metavar="NAME", help=what)
    add = parser.group("where")
    add("--data_dir", Path, DATA_FOLDER, "images and annotation files", metavar="DIR")
    add("--checkpoint_dir", Path, Path("distill_utils/checkpoints"), "pretrained weights", metavar="DIR")
    add("--mirror", _web_address, None, "server to ask in place of each thing's own", metavar="URL")
    return parser


def main(argv=None):
    args = flags.parse(make_parser(), argv)
    for name in args.what:
        get(name, args.data_dir, args.checkpoint_dir, args.mirror)


if __name__ == "__main__":
    sys.exit(run_program(main))

"""The flags that describe a task: data and model, for every program that opens one."""

import argparse

from data import OWN
from data.karpathy import DATASETS
from data.toy import SIZES, parse_sizes
from data.transforms import AUGMENTATIONS
from distill_utils.runs.errors import UserError
from distill_utils.runs.flags import Parser, component, count, positive, run_flags, whole
from distill_utils.task.decoding import free_cores


def program_parser(doc, folder=True):
    """A parser with the groups of every program that opens a task: run (with a folder of its own or not),
    data and model.
    """
    parser = Parser(doc)
    run_flags(parser, folder)
    data_flags(parser)
    model_flags(parser)
    return parser


def _sizes(text):
    """`TRAIN,VAL,TEST` as three counts."""
    try:
        return parse_sizes(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def data_flags(parser):
    add = parser.group("data")
    own = "a known data set, or the layout of your own photos' captions: imagefolder or karpathy"
    add("--dataset", sorted([*DATASETS, *OWN]), "flickr", own)
    where = "(default: the data set's place under distill_utils/data)"
    add(
        "--image_root",
        str,
        None,
        f"folder that the annotation files' image paths start from {where}",
        metavar="DIR",
    )
    add(
        "--ann_root",
        str,
        None,
        f"folder of the annotation files of train, val and test {where}",
        metavar="DIR",
    )
    add("--image_size", count, 224, "side of the square images, in pixels")
    add("--toy_size", _sizes, SIZES, "images of the toy data set", metavar="TRAIN,VAL,TEST")
    add("--num_workers", whole, free_cores(), "processes that decode images")
    how = "how experts see real images: as the published ones did, or by RandAugment"
    add("--augmentation", AUGMENTATIONS, "published", how)
    add("--no_aug", bool, False, "train on plainly resized real images")
    subset = "only these train pairs, as in a coreset's indices.npy (default: all)"
    add("--train_subset", str, None, subset, metavar="NPY")


def model_flags(parser):
    add = parser.group("model")
    add("--image_encoder", component, "nfnet", "nfnet, or any timm name")
    add("--text_encoder", str, "bert", "bert, toy_bert, a local folder, or a hub id")
    add("--image_pretrained", bool, True, "start the image tower from pretrained weights")
    add("--text_pretrained", bool, True, "load the text encoder's weights (false: random ones)")
    add("--image_trainable", bool, True, "train the image encoder (false: a projection head on it)")
    norms = "BatchNorms of the image encoder stay as pretrained; matching a trained encoder needs it"
    add("--freeze_bn", bool, False, norms)
    checkpointing = "recompute the image encoder's activations: a third more time, a fraction of the memory"
    add("--grad_checkpointing", bool, False, checkpointing)
    folder = "pretrained weights; looked in before the hubs"
    add("--checkpoint_dir", str, "distill_utils/checkpoints", folder, metavar="DIR")
    add("--temperature", positive, 0.07, "divides the logits, in training, matching and evaluation")

"""What the data and model flags describe, as objects."""

from copy import deepcopy

from distill_utils.task.retrieval_task import RetrievalTask
from distill_utils.training.protocol import protocol
from networks import build_encoder, join


def open_task(args, device):
    """The RetrievalTask of the data and model flags."""
    return RetrievalTask(
        args.dataset,
        args.text_encoder,
        image_root=args.image_root,
        ann_root=args.ann_root,
        image_size=args.image_size,
        augmentation=None if args.no_aug else args.augmentation,
        toy_sizes=args.toy_size,
        checkpoint_dir=args.checkpoint_dir,
        text_pretrained=args.text_pretrained,
        num_workers=args.num_workers,
        train_subset=args.train_subset,
        device=device,
    )


def model_maker(args, task, device):
    """make_model() -> a fresh TwoTower for the task, its heads initialised from torch's global generator.

    The image encoder, the same in every one, is built once and copied. Where it is frozen the task's real
    images go through it once, here, and not again.
    """
    encoder = build_encoder(
        args.image_encoder,
        pretrained=args.image_pretrained,
        checkpoint_dir=args.checkpoint_dir,
        freeze_bn=args.freeze_bn,
        grad_checkpointing=args.grad_checkpointing,
    ).to(device)

    def make_model():
        return join(deepcopy(encoder), task.text_dim, trainable=args.image_trainable)

    task.look_through(None if args.image_trainable else make_model().frozen_encoder, device)
    return make_model


def made_with(args, task):
    """What experts and the sets distilled from them must agree in; recorded in their meta."""
    towers = {
        "image_encoder": args.image_encoder,
        "image_pretrained": args.image_pretrained,
        "image_trainable": args.image_trainable,
        "freeze_bn": args.freeze_bn,
        "protocol": protocol(args.image_trainable),
    }
    return task.describe() | towers

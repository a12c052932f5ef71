"""A folder of experts of one kind: where it is, what `meta.yaml` in it says, what must agree with that."""

import shutil
import time
from pathlib import Path

import torch

from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked
from distill_utils.runs.reading import read_yaml
from distill_utils.runs.writing import remove_orphans, write_yaml
from networks.weights import TOWERS, Weights, snapshot_bytes

# The keys of meta.yaml in which an expert and its student must agree -> the flag that sets them.
_MUST_AGREE = {
    "dataset": "--dataset",
    "image_encoder": "--image_encoder",
    "text_encoder": "--text_encoder",
    "image_size": "--image_size",
    "image_pretrained": "--image_pretrained",
    "image_trainable": "--image_trainable",
    "freeze_bn": "--freeze_bn",
    "text_fingerprint": "the weights of --text_encoder",
    "train_subset": "--train_subset",
    "train_data": "a hash of the train photos and captions",
    "augmentation": "--augmentation and --no_aug",
}


def buffer_folder(buffer_path, dataset, image_encoder, text_encoder, loss_type, augment):
    """The folder of one kind of expert under `buffer_path`."""
    encoders = f"{image_encoder}_{Path(text_encoder).name}"
    return Path(buffer_path) / dataset / encoders / (loss_type + ("" if augment else "_NoAug"))


def expert_files(folder, n):
    return Weights(*(Path(folder) / f"{tower}_replay_buffer_{n}.pt" for tower in TOWERS))


def forgetting_file(folder, n):
    """What expert n forgot while it trained: {"events" [P], "learned" [P]} of the train pairs."""
    return Path(folder) / f"forgetting_{n}.pt"


def forgetting_files(folder):
    return sorted(Path(folder).glob("forgetting_*.pt"))


def write_meta(folder, meta):
    write_yaml(Path(folder) / "meta.yaml", meta)


def read_meta(folder):
    """meta.yaml as a dict; empty for a buffer of the reference, which has none."""
    return read_yaml(Path(folder) / "meta.yaml")


def require_same_experts(folder, wanted):
    """UserError unless the experts in `folder` were made as `wanted` says (keys of meta.yaml; those absent
    are not compared).
    """
    meta = read_meta(folder)
    for key, flag in _MUST_AGREE.items():
        if key in meta and key in wanted and meta[key] != wanted[key]:
            raise UserError(
                f"The experts in {folder} were trained with {key} {meta[key]!r}, but this run has "
                f"{wanted[key]!r} ({flag})."
            )


def experts_folder(args, loss_type=None):
    """Where experts of the loss_type go, of this data set and these encoders. None: where distillation finds
    those that it matches, InfoNCE's as published; --buffer_path itself where that holds experts.
    """
    if not loss_type and any(Path(args.buffer_path).glob("*_replay_buffer_*.pt")):
        return Path(args.buffer_path)
    kind = args.dataset, args.image_encoder, args.text_encoder, loss_type or "InfoNCE", not args.no_aug
    return buffer_folder(args.buffer_path, *kind)


def is_whole(folder, n):
    return all(path.exists() for path in expert_files(folder, n))


def prepare_folder(folder, meta):
    """Write meta.yaml, or check that the experts already there are of the same kind; clear away what dead
    processes left half written.
    """
    for place in (Path(folder), Path(folder) / ".locks", *Path(folder).glob("partial_*")):
        remove_orphans(place)
    with locked(folder / ".locks" / "meta"):
        existing = read_meta(folder)
        if not existing:
            write_meta(folder, meta)
            return
    require_same_experts(folder, meta)
    for key in (
        "train_epochs",
        "batch_train",
        "temperature",
        "lr_teacher_img",
        "lr_teacher_txt",
        "buffer_dtype",
        "keep_snapshots",
    ):
        if existing.get(key, meta[key]) != meta[key]:
            raise UserError(
                f"The experts in {folder} have {key} {existing.get(key)}, not {meta[key]}: use another "
                "--buffer_path."
            )


def stored_bytes(model, experts, keep, dtype, share_start):
    """The size on disk of `experts` experts of `keep` snapshots."""
    images, texts = snapshot_bytes(model, dtype)
    return experts * keep * (images + texts) - ((experts - 1) * images if share_start and experts else 0)


def require_space(folder, missing, model, keep, dtype, share_start):
    """Say how large the missing experts will be; UserError if the disk has not that much left."""
    if not missing:
        return
    size = stored_bytes(model, missing, keep, dtype, share_start)
    needed = size + (keep + 2) * sum(
        snapshot_bytes(model, torch.float32)
    )  # the epochs of one expert in training
    free = shutil.disk_usage(folder).free
    print(
        f"{missing} experts of {keep} snapshots: {size / 2**30:.2f} GiB in {folder} ({free / 2**30:.1f} GiB "
        "free)"
    )
    if needed > free:
        raise UserError(
            f"{missing} experts need {needed / 2**30:.2f} GiB while they train, but {folder} has "
            f"{free / 2**30:.2f} GiB free: "
            "see --keep_snapshots, --buffer_dtype and --buffer_path."
        )


_POLL = 2.0  # seconds between looks at what other processes are training


def claim(folder, num_experts):
    """Yields the experts that are neither whole nor another process's, holding each while it is worked on,
    until all are whole.
    """
    while missing := [n for n in range(num_experts) if not is_whole(folder, n)]:
        idle = True
        for n in missing:
            with locked(folder / ".locks" / f"expert_{n}", wait=False) as mine:
                if mine and not is_whole(folder, n):
                    idle = False
                    yield n
        if idle:
            time.sleep(_POLL)  # others are at them; one of those may die

"""Flags of the reference implementation that have no meaning here, each with its sentence."""

_NO_DSA = "differentiable augmentation was never applied to image-text pairs by the method"
_NO_TEXTURE = "texture mode belongs to another method (class-wise distillation)"
DROPPED = {
    "dsa": _NO_DSA,
    "dsa_strategy": _NO_DSA,
    "dsa_param": _NO_DSA,
    "zca": "images are normalised by CLIP's mean and std, which every pretrained encoder here expects",
    "texture": _NO_TEXTURE,
    "canvas_size": _NO_TEXTURE,
    "canvas_samples": _NO_TEXTURE,
    "batch_syn": "the size of a synthetic minibatch is --mini_batch_size",
    "subset": "it belonged to ImageNet subsets",
    "ipc": "it counted images per class: give the number of pairs with --num_queries",
    "load_all": "snapshots are read from the files as they are needed, two a step",
    "max_files": "all experts in --buffer_path are used",
    "max_experts": "all experts in --buffer_path are used",
    "force_save": "every evaluated set is saved",
    "eval_mode": "evaluation has one mode, described in docs/evaluation.md",
    "max_end_epoch": "the last start epoch is --max_start_epoch",
    "resume_it": "a run goes on where it was (--resume)",
    "decay": "experts train with plain SGD",
    "mom": "experts train with plain SGD",
    "l2": "experts train with plain SGD",
    "project": "set the WANDB_PROJECT environment variable",
    "disabled_wandb": "use --wandb disabled",
    "draw": "use python -m distill_utils.report",
}

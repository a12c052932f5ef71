"""What the flags of an evaluation leave open, the set itself says."""

from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_yaml

# Facts of a set's meta in which its students must agree with it, as flags.
_FACTS = (
    "image_encoder",
    "image_pretrained",
    "image_trainable",
    "freeze_bn",
    "text_encoder",
    "image_size",
    "temperature",
)
# Where the run found things, in its args.yaml; another machine may have them elsewhere.
_PLACES = (
    "image_root",
    "ann_root",
    "toy_size",
    "train_subset",
    "checkpoint_dir",
    "buffer_path",
    "text_pretrained",
)


def ask_the_set(args, given, synthetic, path, may_differ=()):
    """Flags that were not given become what the set was made with, by its meta and its run's args.yaml.

    given: names of the flags that were. Another --dataset is a transfer; any other flag that contradicts the
    set, and is not among `may_differ`, is a UserError.
    """
    meta, run = synthetic.meta, read_yaml(path.parent / "args.yaml")
    for key in ("dataset", *_FACTS):
        if key not in meta:
            continue
        if key not in given:
            setattr(args, key, meta[key])
        elif key in _FACTS and key not in may_differ and getattr(args, key) != meta[key]:
            hint = ", or see distill_utils.crossarch for other architectures" if "encoder" in key else ""
            made, asked = f"{key} {meta[key]!r}", f"--{key} {getattr(args, key)!r}"
            raise UserError(f"{path} was made with {made}, which {asked} contradicts: leave it out{hint}.")
    if run.get("dataset") == args.dataset:
        for key in _PLACES:
            if key not in given and run.get(key) is not None and hasattr(args, key):
                value = run[key]
                setattr(args, key, tuple(value) if isinstance(value, list) else value)

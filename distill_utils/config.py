"""The flags: argparse is the schema, one line each; a YAML file sets defaults and the command line wins."""

import argparse
from pathlib import Path

from data.karpathy import DATASETS
from data.toy import SIZES, parse_sizes
from distill_utils.errors import UserError
from distill_utils.files import read_yaml
from distill_utils.losses import LOSSES
from distill_utils.precision import PRECISIONS

# Flags of the reference that have no meaning here -> why.
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
    "eval_mode": "evaluation has one mode, described in the README",
    "max_end_epoch": "the last start epoch is --max_start_epoch",
    "resume_it": "a run goes on where it was (--resume)",
    "decay": "experts train with plain SGD",
    "mom": "experts train with plain SGD",
    "l2": "experts train with plain SGD",
    "project": "set the WANDB_PROJECT environment variable",
    "disabled_wandb": "use --wandb disabled",
    "draw": "use python -m distill_utils.report",
}


class _Parser(argparse.ArgumentParser):
    """argparse whose complaint is one sentence, without pages of usage."""

    def error(self, message):
        raise UserError(f"{message[0].upper()}{message[1:]} (--help lists the flags).")


def boolean(text):
    """`true` or `false` (also yes/no, 1/0), for flags that may also stand alone."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def _number(kind, low, strict, what):
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (value > low if strict else value >= low) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}")
        return value

    return convert


count = _number(int, 1, False, "a whole number of at least 1")
whole = _number(int, 0, False, "a whole number of at least 0")
positive = _number(float, 0.0, True, "a number above 0")
non_negative = _number(float, 0.0, False, "a number of at least 0")


def sizes(text):
    """`TRAIN,VAL,TEST` as three counts."""
    try:
        return parse_sizes(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def names(text):
    """`A,B,...` as a tuple."""
    return tuple(name for name in text.split(",") if name)


LEARNABLE = ("images", "texts", "similarity", "lrs")


def learnable(text):
    """Some of LEARNABLE, as a tuple."""
    parts = names(text)
    unknown = set(parts) - set(LEARNABLE)
    if unknown or not parts:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(LEARNABLE)}, not {text!r}")
    return parts


def gallery(text):
    """`IMAGES,TEXTS` as two counts."""
    parts = [count(part) for part in text.split(",")]
    if len(parts) != 2 or parts[1] < parts[0]:
        raise argparse.ArgumentTypeError(f"expected IMAGES,TEXTS with at least a text an image, not {text!r}")
    return tuple(parts)


def _switch(group, flag, default, help):
    group.add_argument(flag, type=boolean, nargs="?", const=True, default=default, metavar="true|false", help=help)


def _run_flags(parser):
    add = parser.add_argument_group("run").add_argument
    add("--name", help="name of the run's folder under logged_files/<dataset>/")
    add("--seed", type=whole, default=0, help="every random number of the run follows from it")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, or a torch device")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the models: fp32, tf32 (CUDA) or bf16 (autocast)")
    add("--wandb", choices=("online", "offline", "disabled"), default="disabled", help="where curves go besides log.jsonl")
    add("--config", metavar="YAML", help="defaults from a file, such as a run's args.yaml; the command line wins")


def _data_flags(parser):
    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--dataset", choices=sorted(DATASETS), default="flickr", help="which annotation files to read")
    add("--image_root", metavar="DIR", help="folder that the annotation files' image paths start from")
    add("--ann_root", metavar="DIR", help="folder of the {train,val,test} annotation files")
    add("--image_size", type=count, default=224, help="side of the square images, in pixels")
    add("--toy_size", type=sizes, default=SIZES, metavar="TRAIN,VAL,TEST", help="images of the toy data set")
    add("--num_workers", type=whole, default=2, help="processes that decode images")
    _switch(group, "--no_aug", False, "train on plainly resized real images")
    add("--train_subset", metavar="NPY", help="only these train pairs: positions in the annotation file, such as a coreset's indices.npy")


def _model_flags(parser):
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("--image_encoder", default="nfnet", help="nfnet, or any timm name")
    add("--text_encoder", default="bert", help="bert, toy_bert, a local folder, or a hub id")
    _switch(group, "--image_pretrained", True, "start the image tower from pretrained weights")
    _switch(group, "--text_pretrained", True, "load the text encoder's weights (false: random ones)")
    _switch(group, "--image_trainable", True, "train the image encoder (false: a projection head on it)")
    _switch(group, "--grad_checkpointing", False, "recompute the image encoder's activations: a third more time, a fraction of the memory")
    add("--checkpoint_dir", default="distill_utils/checkpoints", metavar="DIR", help="pretrained weights; looked in before the hubs")
    add("--temperature", type=positive, default=0.07, help="divides the logits, in training, matching and evaluation")


def _expert_flags(parser):
    group = parser.add_argument_group("experts")
    add = group.add_argument
    add("--buffer_path", default="buffers", metavar="DIR", help="folder of the expert trajectories")
    add("--num_experts", type=count, default=20, help="experts to train")
    add("--train_epochs", type=count, default=10, help="epochs of each expert")
    add("--batch_train", type=count, default=128, help="real pairs in an expert's batch")
    add("--lr_teacher_img", type=positive, default=0.1, help="learning rate of an expert's image tower")
    add("--lr_teacher_txt", type=positive, default=0.1, help="learning rate of an expert's text head")
    add("--loss_type", choices=LOSSES, default="InfoNCE", help="loss of the experts")
    add("--eval_freq", type=count, default=5, help="epochs between an expert's evaluations")
    add("--buffer_dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored weights: bfloat16 is half the disk")
    add("--keep_snapshots", type=count, metavar="K", help="store only the first K snapshots, max_start_epoch + expert_epochs (default: all)")


def _distill_flags(parser):
    group = parser.add_argument_group("synthetic set")
    add = group.add_argument
    add("--buffer_path", default="buffers", metavar="DIR", help="folder of the expert trajectories")
    add("--num_queries", type=count, default=99, help="pairs in the synthetic set")
    add("--init_indices", metavar="NPY", help="begin with these train pairs, such as a coreset's indices.npy (default: random ones)")
    add("--pix_init", choices=("real", "noise"), default="real", help="initial images")
    add("--txt_init", choices=("real", "noise"), default="real", help="initial text embeddings")
    add("--sim_type", choices=("lowrank", "full", "identity", "expert"), default="lowrank", help="similarity S; expert: an expert's, not learned")
    add("--learn", type=learnable, default=LEARNABLE, metavar="NAME,...", help="what the outer step changes, of images,texts,similarity,lrs")
    add("--sim_rank", type=count, default=10, help="rank r of S = diag(w) + alpha / r * L R^T")
    add("--alpha", type=positive, default=3.0, help="weight of the low-rank part of S")

    group = parser.add_argument_group("matching")
    add = group.add_argument
    add("--Iteration", type=count, default=3000, help="outer steps")
    add("--syn_steps", type=count, default=8, help="inner steps T of the student")
    add("--mini_batch_size", type=count, default=20, help="synthetic pairs in an inner step")
    add("--expert_epochs", type=count, default=1, help="epochs from the start snapshot to the target")
    add("--max_start_epoch", type=count, default=2, help="start snapshots are epochs 0 .. this - 1")
    add("--loss_type", choices=LOSSES, default="WBCE", help="loss on the synthetic set")
    _switch(group, "--merge_loss_branches", False, "one normalised distance for both towers, not the sum of two")
    add("--gradient", choices=("full", "truncated"), default="truncated", help="exact gradient of the unroll, or TESLA's")
    add("--second_order", choices=("forward", "reverse", "finite"), default="finite", help="how the second derivative is taken")
    add("--check_gradient", type=whole, default=0, metavar="K", help="every K outer steps, compare the gradient with --second_order forward")
    _speed_flags(group)

    group = parser.add_argument_group("outer optimiser (SGD)")
    add = group.add_argument
    add("--lr_img", type=non_negative, default=100.0, help="step size of the images")
    add("--lr_txt", type=non_negative, default=100.0, help="step size of the text embeddings")
    add("--lr_sim", type=non_negative, default=10.0, help="step size of the similarity")
    add("--lr_lr", type=non_negative, default=0.01, help="step size of the two learned learning rates")
    add("--lr_teacher_img", type=positive, default=0.1, help="initial learned learning rate of the image tower")
    add("--lr_teacher_txt", type=positive, default=0.1, help="initial learned learning rate of the text head")
    add("--momentum_syn", type=non_negative, default=0.5, help="momentum of images and texts")
    add("--momentum_lr", type=non_negative, default=0.5, help="momentum of the learned learning rates")
    add("--momentum_sim", type=non_negative, default=0.5, help="momentum of the similarity")
    add("--clamp_lr", type=positive, default=1e-3, help="the learned learning rates never fall below this")
    add("--max_lr", type=positive, default=10.0, help="nor rise above this")
    add("--max_bad_steps", type=count, default=5, help="steps in a row without a finite gradient before the last good set is restored")


def _speed_flags(group):
    group.add_argument("--path_device", metavar="DEVICE", help="where the weights of inner steps rest: cpu spares a GPU (default: with the model)")
    _switch(group, "--compile", False, "compile the image encoder (finite only; minutes at the start)")


def _student_flags(parser):
    add = parser.add_argument_group("evaluation").add_argument
    add("--num_eval", type=count, default=5, help="students per evaluation, each with its own seed")
    add("--epoch_eval_train", type=count, default=100, help="epochs a student trains on the synthetic set")
    add("--batch_eval", type=count, default=128, help="synthetic pairs in a student's batch")


def _parser(doc, *groups):
    parser = _Parser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    for group in (_run_flags, _data_flags, _model_flags, *groups):
        group(parser)
    return parser


def buffer_parser(doc):
    return _parser(doc, _expert_flags)


def _resume_flags(parser):
    add = parser.add_argument_group("going on").add_argument
    add("--save_it", type=count, default=50, help="outer steps between states saved (also at every evaluation, SIGTERM and SIGINT)")
    add("--resume", choices=("auto", "never"), default="auto", help="auto: the same command goes on where its run was stopped")
    add("--fresh", dest="resume", action="store_const", const="never", help="begin anew, the same as --resume never")
    add("--resume_from", metavar="PATH", help="begin with the state of this run's folder or state.pt, or with this distilled_*.pt")


def distill_parser(doc):
    parser = _parser(doc, _distill_flags, _student_flags, _resume_flags)
    parser.add_argument("--eval_it", type=count, default=50, help="outer steps between evaluations, each of which saves the set")
    parser.add_argument("--num_seeds", type=count, default=1, help="whole distillations, each in a run of its own: NAME_seed0, NAME_seed1, ...")
    return parser


def _set_flags(parser):
    add = parser.add_argument_group("what to evaluate").add_argument
    add("--ckpt_path", required=True, metavar="PATH", help="a distilled_*.pt, or a run's folder: its set chosen on val")
    add("--loss_type", choices=LOSSES, help="loss of the students (default: the one the set was made for)")


def crossarch_parser(doc):
    parser = _parser(doc, _student_flags, _set_flags)
    add = parser.add_argument_group("architectures").add_argument
    add("--image_encoders", type=names, default=(), metavar="NAME,...", help="students' image encoders (default: --image_encoder)")
    add("--text_encoders", type=names, default=(), metavar="NAME,...", help="students' text encoders (default: --text_encoder)")
    return parser


def evaluate_parser(doc):
    parser = _parser(doc, _student_flags, _set_flags)
    group = parser.add_argument_group("beside it")
    add = group.add_argument
    _switch(group, "--baselines", False, "also train random real pairs, as many, and quote the experts")
    _switch(group, "--breakdown", False, "also recall by length of the caption and by number of captions of the image")
    add("--buffer_path", default="buffers", metavar="DIR", help="folder of the experts, for --baselines")
    return parser


CORESETS = ("random", "herding", "k-center", "k-means", "forgetting", "clip", "vas", "vas_d")


def coreset_parser(doc):
    parser = _parser(doc)
    parser.add_argument("method", choices=CORESETS, help="how pairs are chosen")
    group = parser.add_argument_group("coreset")
    add = group.add_argument
    add("--num_queries", type=count, default=99, help="pairs to choose")
    add("--loss_type", choices=LOSSES, default="InfoNCE", help="loss that evaluation trains the pairs with")
    _switch(group, "--unique_images", True, "at most one pair of each image")
    add("--buffer_path", default="buffers", metavar="DIR", help="folder of the experts, whose last snapshots give the features")
    add("--expert", type=whole, default=0, metavar="N", help="which of the experts gives the features")
    add("--fraction", type=fraction, default=1.0, help="vas, vas_d: first keep this fraction of the pairs by their CLIP score")
    add("--num_iters", type=count, default=10, help="vas_d: rounds")
    return parser


def fraction(text):
    """A number above 0 and up to 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, not {text!r}")
    return value


def _pool_flags(parser, required):
    add = parser.add_argument_group("pool").add_argument
    add("--metadata_dir", required=required, metavar="DIR", help="DataComp metadata: pairs of <name>.parquet and <name>.npz")
    add("--arch", choices=("l14", "b32"), default="l14", help="whose scores and embeddings: CLIP's ViT-L/14 or ViT-B/32")
    add("--score_column", metavar="NAME", help="column of the CLIP scores (default: clip_<arch>..._similarity_score)")
    add("--feature_member", metavar="NAME", help="member of the .npz with the image embeddings (default: <arch>_img)")
    add("--uid_column", default="uid", metavar="NAME", help="column of the uids")
    add("--block", type=count, default=4096, metavar="ROWS", help="rows read at a time; the result does not depend on it")


def _embedding_flags(parser):
    group = parser.add_argument_group("arithmetic")
    _switch(group, "--normalize", False, "make embeddings unit vectors (else those that are not are refused)")
    group.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, or a torch device")


def vas_parser(doc):
    parser = _Parser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    _pool_flags(parser, required=True)
    add = parser.add_argument_group("what to keep").add_argument
    add("--save_path", required=True, metavar="FILE.npy", help="the subset; a .json beside it says how it came about")
    add("--fraction", type=fraction, metavar="F", help="keep this fraction of the pool by CLIP score first")
    add("--threshold", type=float, metavar="T", help="instead: keep CLIP scores of at least this")
    add("--fraction_vas", type=fraction, metavar="F", help="of those keep this fraction of the whole pool by VAS")
    add("--threshold_vas", type=float, metavar="T", help="instead: keep VAS of at least this")
    add("--target_variance", metavar="FILE", help="second moment of the prior set (.npy or .pt); without it VAS-D: the pool's own")
    add("--num_iters", type=count, metavar="T", help="rounds of VAS-D; 1 is VAS by the second moment of the train data")
    add("--given_uids_path", metavar="FILE.npy", help="a subset that the pool is restricted to beforehand")
    _embedding_flags(parser)
    return parser


def moment_parser(doc):
    parser = _Parser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    _pool_flags(parser, required=False)
    add = parser.add_argument_group("embeddings").add_argument
    add("--features", nargs="+", default=(), metavar="FILE", help="instead of a pool: .npy, .npz (--feature_member) or .pt, each [N, D]")
    add("--out", required=True, metavar="FILE.npy", help="where the second moment goes")
    _embedding_flags(parser)
    return parser


def validate_parser(doc):
    parser = _Parser(description=doc, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)
    parser.add_argument("subset", metavar="FILE.npy", help="the subset to look at")
    _pool_flags(parser, required=False)
    return parser


def benchmark_parser(doc):
    parser = _parser(doc)
    parser.add_argument("what", choices=("matching", "retrieval", "trajectory", "evaluate", "vas"), help="what to measure")
    parser.set_defaults(dataset="toy", toy_size=(64, 8, 8), no_aug=True, image_encoder="nfnet_l0", image_size=128, image_pretrained=False)
    group = parser.add_argument_group("benchmark")
    add = group.add_argument
    add("--repeats", type=count, default=3, help="measured repetitions, after one that warms up")
    add("--cells", type=names, default=(), metavar="NAME,...", help="matching: only these, such as reference,ours/full/finite (default: all)")
    _switch(group, "--exact", True, "matching: errors against float64 gradients of the same kind")
    _switch(group, "--whole", False, "matching: also the whole outer step, reading and building included")
    add("--figure", metavar="FILE", help="matching: also draw the table, as .svg, .png or .pdf")
    add("--expert_steps", type=count, default=6, help="training steps of the expert before its start, and on to its target")
    add("--pool", type=names, default=("100000", "1000000"), metavar="ROWS,...", help="vas: rows of the pools")
    add("--gallery", type=gallery, default=(5000, 25010), metavar="IMAGES,TEXTS", help="retrieval: size of the score matrix")
    add("--num_queries", type=count, default=20, help="pairs in the synthetic set")
    add("--mini_batch_size", type=count, default=8, help="synthetic pairs in an inner step")
    add("--syn_steps", type=count, default=2, help="inner steps T of the student")
    add("--loss_type", choices=LOSSES, default="WBCE", help="loss on the synthetic set")
    add("--sim_type", choices=("lowrank", "full", "identity"), default="lowrank", help="similarity matrix S")
    add("--sim_rank", type=count, default=10, help="rank r of S")
    add("--alpha", type=positive, default=3.0, help="weight of the low-rank part of S")
    add("--lr_teacher_img", type=positive, default=0.1, help="learning rate of the image tower in the inner loop")
    add("--lr_teacher_txt", type=positive, default=0.1, help="learning rate of the text head in the inner loop")
    _switch(group, "--merge_loss_branches", False, "one normalised distance for both towers, not the sum of two")
    _speed_flags(group)
    return parser


def parse(parser, argv=None):
    """The namespace; --config is applied first, so that what the command line says wins. Raises UserError for any mistake."""
    argv = list(argv)
    for token in argv:
        flag = token.split("=")[0]
        if flag.startswith("--") and flag[2:] in DROPPED and flag not in parser._option_string_actions:
            raise UserError(f"{flag} is not a flag of this project: {DROPPED[flag[2:]]}.")
    pre = _Parser(add_help=False, allow_abbrev=False)
    pre.add_argument("--config")
    config = pre.parse_known_args(argv)[0].config
    return parser.parse_args((_config_tokens(parser, config, argv) if config else []) + argv)


def _config_tokens(parser, path, argv):
    """The YAML file's values as command-line tokens, so that argparse checks them like any other."""
    if not Path(path).is_file():
        raise UserError(f"--config {path} does not exist.")
    values = read_yaml(path)
    actions = {action.dest: action for action in parser._actions}
    tokens = []
    for key, value in values.items():
        if key == "_run" or value is None:
            continue
        if key not in actions or key in ("help", "config"):
            raise UserError(f"--config {path} sets {key!r}, which is not a flag of this program.")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if actions[key].option_strings:
            tokens.append(f"--{key}={text}")
        elif text not in argv:  # a positional: the command line may repeat it
            tokens.append(text)
    return tokens

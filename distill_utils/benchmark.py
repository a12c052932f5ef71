"""What things cost, side by side in one run: `python -m distill_utils.benchmark
matching|run|retrieval|trajectory|evaluate|vas [flags]`.

Every cell runs alone in a process of its own, so that its peak memory is its own; the last line printed is
one JSON object. Figures mean something on an idle machine only.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from distill_utils.runs import flags
from distill_utils.runs.devices import describe_device, resolve_device
from distill_utils.runs.flags import count, positive
from distill_utils.runs.provenance import provenance
from distill_utils.runs.signals import run_program
from distill_utils.task.flags import program_parser
from distill_utils.training.losses import LOSSES

BENCHMARKS = ("matching", "run", "retrieval", "trajectory", "evaluate", "vas")


def benchmark_of(what):
    """The function that measures it, imported when it is asked for: a cell's memory is to be its own."""
    if what == "matching":
        from distill_utils.benchmarks.matching import benchmark
    elif what == "run":
        from distill_utils.benchmarks.run import benchmark
    elif what == "retrieval":
        from distill_utils.benchmarks.retrieval import benchmark
    elif what == "trajectory":
        from distill_utils.benchmarks.trajectory import benchmark
    elif what == "evaluate":
        from distill_utils.benchmarks.gallery import benchmark
    else:
        from distill_utils.benchmarks.vas import benchmark
    return benchmark


def gallery(text):
    """`IMAGES,TEXTS` as two counts."""
    parts = [count(part) for part in text.split(",")]
    if len(parts) != 2 or parts[1] < parts[0]:
        raise argparse.ArgumentTypeError(f"expected IMAGES,TEXTS with at least a text an image, not {text!r}")
    return tuple(parts)


def make_parser():
    parser = program_parser(__doc__, folder=False)
    parser.add_argument("what", choices=BENCHMARKS, help="what to measure")
    parser.set_defaults(dataset="toy", toy_size=(64, 8, 8), no_aug=True)
    parser.set_defaults(image_encoder="nfnet_l0", image_size=128, image_pretrained=False)
    add = parser.group("benchmark")
    add("--repeats", count, 3, "measured repetitions, after one that warms up")
    only = "matching: only these, such as reference,ours/full/finite (default: all)"
    add("--cells", flags.names, (), only, metavar="NAME,...")
    add("--exact", bool, True, "matching: errors against float64 gradients of the same kind")
    add("--whole", bool, False, "matching: also the whole outer step, reading and building included")
    figure = "matching: also draw the table, as .svg, .png or .pdf (default: no figure)"
    add("--figure", str, None, figure, metavar="FILE")
    add("--expert_steps", count, 6, "training steps of the expert before its start, and on to its target")
    add("--pool", flags.names, ("100000", "1000000"), "vas: rows of the pools", metavar="ROWS,...")
    add("--gallery", gallery, (5000, 25010), "retrieval: size of the score matrix", metavar="IMAGES,TEXTS")
    add("--num_queries", count, 20, "pairs in the synthetic set")
    add("--mini_batch_size", count, 8, "synthetic pairs in an inner step")
    add("--syn_steps", count, 2, "inner steps T of the student")
    add("--loss_type", LOSSES, "WBCE", "loss on the synthetic set")
    add("--sim_type", ("lowrank", "full", "identity"), "lowrank", "similarity matrix S")
    add("--sim_rank", count, 10, "rank r of S")
    add("--alpha", positive, 3.0, "weight of the low-rank part of S")
    add("--lr_teacher_img", positive, 0.1, "learning rate of the image tower in the inner loop")
    add("--lr_teacher_txt", positive, 0.1, "learning rate of the text head in the inner loop")
    add("--merge_loss_branches", bool, False, "one normalised distance for both towers, not the sum of two")
    flags.speed_flags(add)
    run_flags(parser)
    return parser


def run_flags(parser):
    add = parser.group("a whole run, for `run`")
    add("--Iteration", count, 3000, "outer steps")
    add("--eval_it", count, 50, "outer steps between evaluations")
    add("--num_eval", count, 5, "students that test the selected set")
    add("--num_eval_during", count, 2, "students of an evaluation before, at most --num_eval")
    add("--measurements", count, 5, "times that a student before is measured on val")
    add("--epoch_eval_train", count, 100, "epochs a student trains")
    what = "images and texts of the gallery that is"
    add("--val_gallery", gallery, (1014, 5070), f"{what} looked at", metavar="IMAGES,TEXTS")
    add("--test_gallery", gallery, (1000, 5000), f"{what} tested on", metavar="IMAGES,TEXTS")


def main(argv=None):
    args = flags.parse(make_parser(), argv)
    device = resolve_device(args.device)
    args.device = str(device)
    settings = {key: value for key, value in vars(args).items() if key not in ("config", "what", "figure")}
    machine = provenance(describe_device(device), args.seed)
    about = {key: value for key, value in machine.items() if key not in ("command", "started", "seed")}
    print(", ".join(f"{key} {value}" for key, value in about.items()), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark_of(args.what)(args, Path(folder))
    result = {"benchmark": args.what, "settings": settings, "machine": machine} | result
    if args.figure and args.what == "matching":
        from distill_utils.benchmarks.figure import draw_matching  # not into every cell's memory

        draw_matching(result, args.figure)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    sys.exit(run_program(main))

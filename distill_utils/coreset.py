"""Real pairs as a synthetic set with S = I: `python -m distill_utils.coreset herding --dataset toy
--num_queries 50`.

With --metadata_dir, `vas` and `vas_d` filter a DataComp pool instead; `moment` and `validate` belong to that.
Features are those of an expert's two towers; those of a pair, (image, text) / sqrt(2), are unit vectors of
its joint embedding.
"""

import sys
from pathlib import Path

from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.runs.flags import count, fraction, whole
from distill_utils.runs.signals import run_program
from distill_utils.selection import pool_flags

# A command on a pool imports what it uses: torch and the encoders' libraries are for the coresets alone.
_POOL_COMMANDS = {
    "vas": pool_flags.vas_parser,
    "moment": pool_flags.moment_parser,
    "validate": pool_flags.validate_parser,
}


def make_parser():
    from distill_utils.selection.coresets import CORESETS
    from distill_utils.task.flags import program_parser
    from distill_utils.training.losses import LOSSES

    parser = program_parser(__doc__)
    parser.add_argument("method", choices=CORESETS, help="how pairs are chosen")
    add = parser.group("coreset")
    add("--num_queries", count, 99, "pairs to choose")
    add("--loss_type", LOSSES, "InfoNCE", "loss that evaluation trains the pairs with")
    add("--unique_images", bool, True, "at most one pair of each image")
    flags.buffer_path_flag(add, "folder of the experts, whose last snapshots give the features")
    add("--expert", whole, 0, "which of the experts gives the features", metavar="N")
    add("--fraction", fraction, 1.0, "vas, vas_d: first keep this fraction of the pairs by their CLIP score")
    add("--num_iters", count, 10, "vas_d: rounds")
    return parser


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    what = argv[0] if argv else ""
    pool = any(token.split("=")[0] == "--metadata_dir" for token in argv)
    if what in ("moment", "validate") or what in ("vas", "vas_d") and pool:
        command = "vas" if what == "vas_d" else what
        args = flags.parse(_POOL_COMMANDS[command](__doc__), argv[1:])
        if what == "vas_d" and args.target_variance:
            raise UserError(
                "vas_d takes its second moment from the pool: leave --target_variance out, or call vas."
            )
        from distill_utils.selection.from_flags import run_command

        return run_command(command, args)
    return choose_coreset(flags.parse(make_parser(), argv))


def choose_coreset(args):
    """The file of the set."""
    from distill_utils.runs.folder import Run
    from distill_utils.runs.seeds import generator
    from distill_utils.runs.writing import write_array
    from distill_utils.selection.features import chosen_pairs
    from distill_utils.synthetic.set import real_set
    from distill_utils.task.from_flags import made_with, model_maker, open_task

    run = Run(args, "coreset", default_name=f"coreset_{args.method}_{args.num_queries}")
    task = open_task(args, run.device)
    pairs = chosen_pairs(
        args.method,
        args,
        task,
        lambda: model_maker(args, task, run.device),
        run.device,
        generator(args.seed, "coreset"),
        expert=args.expert,
        unique_images=args.unique_images,
        fraction=args.fraction,
        rounds=args.num_iters,
    )
    made = {"loss": args.loss_type, "temperature": args.temperature, "step": 0, "coreset": args.method}
    path = Path(run.directory) / "distilled_0.pt"
    real_set(task, pairs, made_with(args, task) | made).save(path)
    write_array(path.with_name("indices.npy"), task.numbers[pairs].numpy())
    print(f"{len(pairs)} real pairs by {args.method}: {path}")
    return path


if __name__ == "__main__":
    sys.exit(run_program(main))

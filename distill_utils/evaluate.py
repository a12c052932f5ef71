"""Fresh students on a synthetic set, and their recall: `python -m distill_utils.evaluate --dataset toy
--ckpt_path RUN_OR_FILE ...`.
"""

import sys
from functools import partial

from distill_utils.evaluation.baselines import experts_row, random_baselines
from distill_utils.evaluation.protocols import METRICS
from distill_utils.evaluation.students import evaluate_synthetic_set
from distill_utils.evaluation.tables import format_breakdown, format_table
from distill_utils.experts.folder import experts_folder
from distill_utils.runs import flags
from distill_utils.runs.folder import Run
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.runs.signals import run_program
from distill_utils.selection.coresets import select
from distill_utils.synthetic.checkpoint import find_checkpoint, require_fits
from distill_utils.synthetic.set import SyntheticSet, real_set
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.losses import LOSSES


def make_parser():
    parser = program_parser(__doc__)
    flags.student_flags(parser)
    flags.set_flags(parser, LOSSES)
    add = parser.group("beside it")
    add("--baselines", bool, False, "also train random real pairs, as many, and quote the experts")
    add(
        "--breakdown",
        bool,
        False,
        "also recall by length of the caption and by number of captions of the image",
    )
    flags.buffer_path_flag(add, "folder of the experts, for --baselines")
    return parser


def main(argv=None):
    """{row: result} of the set and of what was asked for beside it."""
    args = flags.parse(make_parser(), argv)
    path = find_checkpoint(args.ckpt_path)
    synthetic = SyntheticSet.load(path)
    run = Run(args, "evaluate", default_name=path.parent.name, directory=path.parent, divided=True)
    task = open_task(args, run.device)
    require_fits(synthetic, task, path)
    loss_type = args.loss_type or synthetic.meta.get("loss", "WBCE")

    evaluate = partial(
        evaluate_synthetic_set,
        task=task,
        make_model=model_maker(args, task, run.device),
        epochs=args.epoch_eval_train,
        batch_size=args.batch_eval,
        temperature=args.temperature,
        device=run.device,
        precision=args.precision,
    )

    def evaluate_draw(pairs, number, loss, lrs):
        return evaluate(
            pairs, num_eval=1, loss_type=loss, lrs=lrs, seed=derive_seed(args.seed, "random", number)
        )

    run_all = partial(run.world.map, device=run.device)

    rows = {}
    if args.baselines:
        numbers = generator(args.seed, "coreset")
        draws = [
            real_set(task, select("random", task, len(synthetic), numbers), {}) for _ in range(args.num_eval)
        ]
        learned = synthetic.lr_img.item(), synthetic.lr_txt.item()
        rows |= random_baselines(draws, learned, loss_type, evaluate_draw, run_all)
    rows["distilled"] = evaluate(
        synthetic,
        num_eval=args.num_eval,
        loss_type=loss_type,
        seed=derive_seed(args.seed, "evaluate"),
        breakdown=args.breakdown,
        world=run.world,
    )
    rows["distilled"] |= {"file": path.name}
    if args.baselines:
        rows["full"] = experts_row(experts_folder(args))
    run.update_results(rows)
    values = {f"Evaluate/{row}/{key}": result[key]["mean"] for row, result in rows.items() for key in METRICS}
    run.log(synthetic.meta.get("step", 0), values)
    run.finish()
    if run.world.first:
        print(f"{path}: {len(synthetic)} pairs, test recall in %, epoch chosen on val")
        print(format_table(rows))
        if args.breakdown:
            print("\ndistilled, by kind of query (text to image, image to text)")
            print(format_breakdown(rows["distilled"]["breakdown"]))
    return rows


if __name__ == "__main__":
    sys.exit(run_program(main))

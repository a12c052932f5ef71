"""Fresh students on a set, and their recall: `python -m distill_utils.evaluate --ckpt_path RUN_OR_FILE`.

Data set, encoders, image size, temperature and loss are those of the set; another --dataset is a transfer to
it.
"""

import sys
from functools import partial

from distill_utils.evaluation.baselines import (
    BRIEFLY,
    FEW,
    RATES,
    at_best_rates,
    experts_row,
    random_baseline,
)
from distill_utils.evaluation.from_flags import ask_the_set
from distill_utils.evaluation.protocols import METRICS, ROWS
from distill_utils.evaluation.students import evaluate_synthetic_set
from distill_utils.evaluation.tables import format_breakdown, format_table
from distill_utils.experts.folder import experts_folder
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.runs.folder import Run
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.runs.signals import run_program
from distill_utils.selection.coresets import select
from distill_utils.synthetic.checkpoint import find_checkpoint, require_fits
from distill_utils.synthetic.set import SyntheticSet, real_set
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.losses import LOSSES
from distill_utils.training.protocol import protocol


def make_parser():
    parser = program_parser(__doc__)
    add = flags.student_flags(parser)
    what = "learning rates that real pairs choose from on val"
    add("--rates", flags.rates, RATES, what, metavar="RATE,...")
    flags.set_flags(parser, LOSSES)
    add = parser.group("beside it")
    add("--baselines", bool, False, "also train random real pairs, as many, and quote the experts")
    control = "run or file of the same loss with S = I, to be the row `identity` (default: none)"
    add("--identity", str, None, control, metavar="RUN_OR_FILE")
    further = "runs or files of the phases after this one: students go on with each, as long (PTM-ST)"
    add("--then", flags.names, (), further, metavar="RUN_OR_FILE,...")
    restart = "let the rates of the phases of --then begin anew; else they stay fallen, as published"
    add("--restart_rates", bool, False, restart)
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
    args, given = flags.parse_given(make_parser(), argv)
    path = find_checkpoint(args.ckpt_path)
    synthetic = SyntheticSet.load(path)
    ask_the_set(args, given, synthetic, path)
    loss_type = args.loss_type or synthetic.meta.get("loss", "WBCE")
    run = Run(args, "evaluate", default_name=path.parent.name, directory=path.parent, divided=True)
    control = _control(args, synthetic, loss_type, path) if args.identity else None
    full = experts_row(experts_folder(args)) if args.baselines else None
    if args.baselines and not full and run.world.first:
        print(f"{experts_folder(args)} holds no results of experts: the row of the full data is left out.")
    task = open_task(args, run.device)
    require_fits(synthetic, task, path)
    then = [SyntheticSet.load(file) for file in args.then]
    for file, phase in zip(args.then, then):
        require_fits(phase, task, file)

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
    rates = [(rate, rate) for rate in args.rates]
    if "coreset" not in synthetic.meta:  # whose rates nobody learned
        rates.append((synthetic.lr_img.item(), synthetic.lr_txt.item()))
    about = {"file": path.name, "digest": synthetic.digest()}
    if then:
        about |= {"then": [phase.digest() for phase in then], "restart_rates": args.restart_rates}
    about |= {"dataset": args.dataset, "distilled_from": synthetic.meta.get("dataset")}
    towers = ("image_encoder", "text_encoder", "image_size", "image_trainable", "freeze_bn")
    about |= {key: getattr(args, key) for key in towers} | {"protocol": protocol(args.image_trainable)}
    rows = {}

    def keep(name, row):
        rows[name] = row | about
        run.update_results({name: rows[name]})  # at once: what is done stays whatever comes after

    in_turn = partial(evaluate, then=then, restart_rates=args.restart_rates) if then else evaluate
    keep("distilled", _evaluate_set(args, run, synthetic, in_turn, loss_type, rates))
    if control:
        keep("identity", _evaluate_set(args, run, control, evaluate, loss_type, rates))
    if args.baselines:
        pairs = len(synthetic) + sum(map(len, then))
        for name, row in _random_rows(args, run, pairs, task, evaluate, loss_type, rates):
            keep(name, row)
    if full:
        keep("full", full)
    values = {f"Evaluate/{row}/{key}": result[key]["mean"] for row, result in rows.items() for key in METRICS}
    run.log(synthetic.meta.get("step", 0), values)
    run.finish()
    if run.world.first:
        _tell(path, synthetic, rows, args)
    return rows


def _evaluate_set(args, run, synthetic, evaluate, loss_type, rates):
    """Of a distilled set at its learned rates, of a coreset at those that are best on val."""
    seed = derive_seed(args.seed, "evaluate")
    students = partial(evaluate, synthetic, loss_type=loss_type, seed=seed, world=run.world)

    def test(lrs=None):
        return students(lrs=lrs, num_eval=args.num_eval, breakdown=args.breakdown)

    if "coreset" not in synthetic.meta:
        return test()

    def look(lrs):
        return students(lrs=lrs, num_eval=min(FEW, args.num_eval), **BRIEFLY)

    return at_best_rates(look, test, rates, f"this coreset, {loss_type}")


def _control(args, synthetic, loss_type, path):
    """The set of --identity: as many pairs, the same task and loss, and S = I."""
    file = find_checkpoint(args.identity)
    control = SyntheticSet.load(file)
    kind, loss = control.similarity.kind, control.meta.get("loss")
    if kind != "identity" or loss != loss_type:
        raise UserError(
            f"--identity {file} has a similarity of kind {kind} and loss {loss}: the control of {path} has "
            f"S = I and loss {loss_type}."
        )
    if len(control) != len(synthetic):
        raise UserError(f"--identity {file} holds {len(control)} pairs, {path} has {len(synthetic)}.")
    for key in ("dataset", "image_encoder", "text_encoder", "image_size", "protocol"):
        own, other = synthetic.meta.get(key), control.meta.get(key)
        if own != other:
            raise UserError(f"--identity {file} was made with {key} {other!r}, {path} with {own!r}.")
    return control


def _random_rows(args, run, number, task, evaluate, loss_type, rates):
    """Yields (row, result) of a number of random pairs under InfoNCE and under the set's own loss.

    Every student has its own draw, the same draws under both.
    """
    numbers = generator(args.seed, "coreset")
    chosen = [select("random", task, number, numbers) for _ in range(args.num_eval)]
    draws = [real_set(task, pairs, {}) for pairs in chosen]

    def one(pairs, student, loss_type, lrs, **how):
        seed = derive_seed(args.seed, "random", student)
        return evaluate(pairs, num_eval=1, loss_type=loss_type, lrs=lrs, seed=seed, **how)

    run_all, done = partial(run.world.map, device=run.device), {}
    for name, loss in (("random", "InfoNCE"), ("random_same_loss", loss_type)):
        if loss not in done:
            done[loss] = random_baseline(draws, loss, rates, one, run_all)
        yield name, done[loss]


def _tell(path, synthetic, rows, args):
    made_from = synthetic.meta.get("dataset")
    transfer = made_from not in (None, args.dataset)
    where = f", distilled from {made_from}, on {args.dataset}" if transfer else ""
    print(f"{path}: {len(synthetic)} pairs{where}")
    print(
        f"test recall in %, protocol {protocol(args.image_trainable)}, epoch chosen on val, "
        "as are the learning rates of real pairs"
    )
    print(format_table({name: rows[name] for name in ROWS if name in rows}))
    if args.breakdown:
        print("\ndistilled, by kind of query (text to image, image to text)")
        print(format_breakdown(rows["distilled"]["breakdown"]))


if __name__ == "__main__":
    sys.exit(run_program(main, "--batch_eval"))

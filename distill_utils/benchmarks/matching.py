"""The gradients of an outer step by every scheme: seconds, memory, errors, beside T plain training steps."""

import argparse
import sys
from functools import partial

import torch

from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import spread, timed
from distill_utils.benchmarks.problem import Problem, make_problem
from distill_utils.benchmarks.whole_step import whole_step
from distill_utils.evaluation.tables import aligned
from distill_utils.matching import oracles
from distill_utils.matching.checks import gradient_agreement, require_combination
from distill_utils.matching.derivatives import DERIVATIVES
from distill_utils.matching.gradient import GRADIENTS, Matcher
from distill_utils.runs.devices import peak_mb
from distill_utils.runs.errors import UserError
from distill_utils.training.epochs import sgd, train_epoch

_GROUPS = ("pixels", "texts", "similarity", "lrs")  # of the set's parameters


def cell_name(scheme, gradient, second_order):
    return scheme if scheme in ("reference", "unroll", "training") else f"{scheme}/{gradient}/{second_order}"


CELLS = {
    cell_name(*cell): cell
    for cell in [
        ("reference", "truncated", "reverse"),
        ("unroll", "full", "reverse"),
        # of a frozen tower alone: it is looked through in every inner step
        ("every-step", "truncated", "finite"),
        *(("ours", gradient, second_order) for gradient in GRADIENTS for second_order in DERIVATIVES),
    ]
}


# --- cells ---


def training_cell(args, folder):
    """T plain training steps, forward, backward and SGD: the floor under every scheme."""
    problem = Problem(args, folder)
    optimizer = sgd(problem.model, 0.1, 0.1)

    def step(n):
        minibatches = [problem.synthetic.minibatch(ids) for ids in problem.minibatches[n]]
        batches = [tuple(value.detach() for value in minibatch) for minibatch in minibatches]
        train_epoch(problem.model, batches, optimizer, problem.loss_fn, args.temperature, args.precision)

    seconds = timed(step, problem.device, args.repeats)
    return {"scheme": "training", "all": seconds} | spread(seconds) | {"peak_mb": peak_mb(problem.device)}


def matching_cell(args, folder, scheme, gradient, second_order):
    """Seconds and peak memory of the gradients of an outer step; the gradients go into a file."""
    problem = Problem(args, folder)
    how = {"gradient": gradient, "second_order": second_order}
    if scheme in ("ours", "every-step"):
        how_often = {"look_once": scheme == "ours"}
        take = Matcher(problem.model, problem.loss_fn, **how, **how_often, **problem.shared, **problem.speed)
    elif scheme == "unroll":
        how_far = {"loss_fn": problem.loss_fn, "gradient": gradient}
        take = partial(oracles.unroll, problem.model, **how_far, **problem.shared)
    else:
        take = partial(oracles.reference, problem.model, loss_fn=problem.loss_fn, **problem.shared)
    found = []

    def step(n):
        take(problem.synthetic, problem.start, problem.target, problem.minibatches[n], seed=n)
        found.append(problem.gradients())

    seconds = timed(step, problem.device, args.repeats)
    torch.save(found, _gradients_file(folder, scheme, gradient, second_order))
    paths = 2 if (scheme, gradient, second_order) == ("ours", "full", "finite") else 1
    path_mb = paths * args.syn_steps * sum(map(len, problem.start)) * 4 / 2**20
    return (
        {"scheme": scheme} | how | spread(seconds) | {"peak_mb": peak_mb(problem.device), "path_mb": path_mb}
    )


def exact_cell(args, folder, gradient):
    """The same gradients in float64, by `forward`, which the tests hold against the whole unroll to 1e-9."""
    args = argparse.Namespace(**vars(args) | {"precision": "fp32", "grad_checkpointing": False})
    problem = Problem(args, folder, torch.float64)
    how = {"gradient": gradient, "second_order": "forward"}
    matcher = Matcher(problem.model, problem.loss_fn, **how, **problem.shared)
    found = []
    for n, minibatches in enumerate(problem.minibatches):
        matcher(problem.synthetic, problem.start, problem.target, minibatches, seed=n)
        found.append(problem.gradients())
    torch.save(found, _gradients_file(folder, "exact", gradient))
    return {}


def _gradients_file(folder, *cell):
    return folder / f"{'_'.join(cell)}.pt"


# --- agreement ---


def _group(parameter):
    """Which of _GROUPS a parameter of the synthetic set belongs to."""
    groups = {"images": "pixels", "texts": "texts", "lr_img": "lrs", "lr_txt": "lrs"}
    return groups.get(parameter, "similarity")


def _agreement(folder, cell):
    """Per group of parameters, the worst cosine and relative error over the steps; {} where there is no exact
    gradient.
    """
    exact = _gradients_file(folder, "exact", cell["gradient"])
    if not exact.exists():
        return {}
    own = _gradients_file(folder, cell["scheme"], cell["gradient"], cell["second_order"])
    # what the step that warms up found is left out
    steps = list(zip(*(torch.load(file, weights_only=True)[1:] for file in (own, exact))))
    result = {}
    for group in _GROUPS:
        names = [name for name in steps[0][0] if _group(name) == group]
        if names:
            whole = [
                [torch.cat([side[name].flatten().double() for name in names]) for side in step]
                for step in steps
            ]
            pairs = [gradient_agreement(*step) for step in whole]
            cosine, error = min(pair["cosine"] for pair in pairs), max(pair["error"] for pair in pairs)
            result[group] = {"cosine": cosine, "relative_error": error}
    return result


# --- the benchmark ---


def benchmark(args, folder):
    """Rows for the cells that the flags name, beside the floor."""
    wanted = _wanted(args)
    make_problem(args, folder)
    floors, found = [cells.in_own_process(training_cell, args, folder)], []
    for cell in wanted:
        named = dict(zip(("scheme", "gradient", "second_order"), cell))
        result = cells.in_own_process(matching_cell, args, folder, *cell)
        found.append(named | result)
        print(f"{cell_name(*cell)}: {result.get('error') or result}", file=sys.stderr)
        # the floor between all cells: machines drift
        floors.append(cells.in_own_process(training_cell, args, folder))
    if args.exact:
        _exact(args, folder, {cell["gradient"] for cell in found if "error" not in cell})
    for cell in found:
        if "error" not in cell:
            groups = _agreement(folder, cell)
            cell |= groups.get("pixels", {"cosine": None, "relative_error": None}) | {"groups": groups}
    result = {"training": _floor(floors), "cells": found}
    if args.whole:
        result["whole"] = whole_step(args, folder)
    print(_table(result))
    return result


def _wanted(args):
    """The cells that the flags name; UserError where they name none or cannot be run."""
    unknown = sorted(set(args.cells) - set(CELLS))
    if unknown:
        raise UserError(f"--cells {unknown[0]!r} is unknown: expected names among {', '.join(CELLS)}.")
    if args.mini_batch_size > args.num_queries:
        raise UserError(
            f"--mini_batch_size {args.mini_batch_size} is more than the --num_queries {args.num_queries} "
            "pairs there are."
        )
    wanted = [cell for name, cell in CELLS.items() if not args.cells or name in args.cells]
    if args.image_trainable and any("every-step" in name for name in args.cells):
        raise UserError("--cells: every-step is of a frozen image tower, --image_trainable false.")
    if args.image_trainable:
        wanted = [cell for cell in wanted if cell[0] != "every-step"]
    flags = {name: getattr(args, name) for name in ("precision", "compile", "grad_checkpointing")}
    for scheme, _, second_order in wanted if args.cells else ():
        if scheme == "ours":
            require_combination(second_order, **flags)
    return wanted


def _floor(floors):
    """One row of all floors; the first error where one has it."""
    failed = next((floor for floor in floors if "error" in floor), None)
    floor = failed or floors[0] | spread([seconds for floor in floors for seconds in floor["all"]])
    return {key: value for key, value in floor.items() if key != "all"}


def _exact(args, folder, gradients):
    for gradient in sorted(gradients):
        failed = cells.in_own_process(exact_cell, args, folder, gradient)
        if failed:
            print(f"no exact gradient, {gradient}: {failed['error']}", file=sys.stderr)


def _table(result):
    floor = result["training"].get("seconds")
    reference = next((cell.get("seconds") for cell in result["cells"] if cell["scheme"] == "reference"), None)
    header = [
        "outer step",
        "seconds",
        "min",
        "max",
        "n",
        "x training",
        "x faster",
        "peak MB",
        "cosine pixels",
    ]
    header += [f"error {group}" for group in _GROUPS]
    rows = []
    for cell in (result["training"], *result["cells"]):
        name = cell_name(cell["scheme"], cell.get("gradient"), cell.get("second_order"))
        if "error" in cell:
            rows.append([name, cell["error"], *[""] * (len(header) - 2)])
            continue
        seconds, groups = cell["seconds"], cell.get("groups", {})
        row = [name, *(f"{cell[key]:.3f}" for key in ("seconds", "min", "max")), cell["n"]]
        row += [f"{seconds / floor:.2f}" if floor else "", f"{reference / seconds:.2f}" if reference else ""]
        row += [_optional(cell["peak_mb"], ".0f"), _optional(cell.get("cosine"), ".7f")]
        row += [_optional(groups.get(group, {}).get("relative_error"), ".1e") for group in _GROUPS]
        rows.append(row)
    return aligned(header, rows)


def _optional(value, form):
    return "" if value is None else f"{value:{form}}"

"""What things cost, side by side in one run: `python -m distill_utils.benchmark
matching|retrieval|trajectory|evaluate|vas [flags]`.

Every cell runs alone in a process of its own, so that its peak memory is its own; the last line printed is
one JSON object. Figures mean something on an idle machine only.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from data import build_datasets
from data.transforms import normalise
from distill_utils.distillation.optimizer import outer_optimizer
from distill_utils.distillation.outer_loop import OuterLoop
from distill_utils.evaluation.retrieval import recall_from_scores, retrieval_recall
from distill_utils.evaluation.students import gallery_recall
from distill_utils.evaluation.tables import aligned
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.matching import oracles
from distill_utils.matching.checks import gradient_agreement, require_combination
from distill_utils.matching.derivatives import DERIVATIVES
from distill_utils.matching.gradient import GRADIENTS, Matcher
from distill_utils.matching.objective import TrajectoryMatching, draw_minibatches
from distill_utils.runs import flags
from distill_utils.runs.devices import (
    describe_device,
    peak_mb,
    reset_peak,
    resolve_device,
    set_precision,
    synchronise,
)
from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.flags import count, positive
from distill_utils.runs.provenance import provenance
from distill_utils.runs.seeds import generator
from distill_utils.runs.signals import run_program
from distill_utils.runs.writing import atomic_path
from distill_utils.selection import pool, vas
from distill_utils.selection.coresets import select
from distill_utils.selection.oracles import vas_in_memory
from distill_utils.synthetic.set import SyntheticSet, real_set
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.text_encoders import build_text_encoder, ensure_toy_bert
from networks.weights import TOWERS, Weights, flatten, snapshot, tower_parameters

GROUPS = {
    "pixels": ("images",),
    "texts": ("texts",),
    "similarity": None,
    "lrs": ("lr_img", "lr_txt"),
}  # None: all other parameters
_EPOCHS = 10  # of the experts in a buffer of published size


# --- cells ---


def in_own_process(function, *args):
    """function(*args) in a fresh process; {"error": sentence} where that process died or raised."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {
            "error": f"the process ended with status {process.exitcode}"
            + (", probably out of memory" if process.exitcode == -9 else "")
        }
    finally:
        process.join()


def _send_result(sender, function, args):
    try:
        sender.send(function(*args))
    except (UserError, RuntimeError, MemoryError) as error:
        sender.send({"error": first_line(error)})


def timed(step, device, repeats, warm_up=1):
    """Seconds of step(0), step(1), ...; those of the warm-up are left out of the times and of the peak."""
    seconds = []
    for n in range(warm_up + repeats):
        if n == warm_up:
            reset_peak(device)
        synchronise(device)
        began = time.perf_counter()
        step(n)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return seconds[warm_up:]


def spread(seconds):
    return {
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "n": len(seconds),
    }


def _cells_text(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


# --- matching ---


def _cell_name(scheme, gradient, second_order):
    return scheme if scheme in ("reference", "unroll", "training") else f"{scheme}/{gradient}/{second_order}"


CELLS = {
    _cell_name(*cell): cell
    for cell in [
        ("reference", "truncated", "reverse"),
        ("unroll", "full", "reverse"),
        *(("ours", gradient, second_order) for gradient in GRADIENTS for second_order in DERIVATIVES),
    ]
}


def _text_encoder(args, folder):
    """For toy scenes without roots of their own: makes them in `folder`, and a BERT of base size that knows
    their words.
    """
    if args.dataset == "toy" and not args.ann_root:
        args.image_root = args.ann_root = str(folder / "toy")
        train = build_datasets("toy", args.image_root, args.ann_root, toy_sizes=args.toy_size).train
        args.text_encoder = str(ensure_toy_bert(train.captions, folder, width=768, layers=12, heads=12))
    return args.text_encoder


def make_matching_problem(args, folder):
    """Writes `problem.pt`: real pairs, and start and target of an expert that really trained on them for a
    few steps.
    """
    device = torch.device(args.device)
    task = open_task(args, device)
    torch.manual_seed(args.seed)
    model = model_maker(args, task, device)().to(device)
    numbers = generator(args.seed, "benchmark")
    optimizer = sgd(model, 0.1, 0.1)
    batches = (
        batch
        for _ in itertools.count()
        for batch in task.train_batches(max(args.mini_batch_size, 16), numbers, device)
    )
    snapshots = []
    for _ in range(2):
        train_epoch(
            model,
            (next(batches) for _ in range(args.expert_steps)),
            optimizer,
            LOSSES["InfoNCE"],
            args.temperature,
        )
        snapshots.append(snapshot(model))
    synthetic = real_set(task, select("random", task, args.num_queries, numbers), {})
    problem = {
        "snapshots": [list(shot) for shot in snapshots],
        "images": synthetic.images.detach(),
        "texts": synthetic.texts.detach(),
    }
    torch.save(problem, folder / "problem.pt")
    return {}


class _Problem:
    """What every matching cell starts from, in any dtype."""

    def __init__(self, args, folder, dtype=torch.float32):
        self.args, self.device = args, torch.device(args.device)
        set_precision(args.precision, self.device)
        saved = torch.load(folder / "problem.pt", weights_only=True)
        like = {"device": self.device, "dtype": dtype}
        n = len(saved["images"])
        similarity = build_similarity(
            args.sim_type,
            n,
            rank=min(args.sim_rank, n),
            alpha=args.alpha,
            generator=generator(args.seed, "S"),
        )
        self.synthetic = SyntheticSet(
            saved["images"], saved["texts"], similarity, args.lr_teacher_img, args.lr_teacher_txt
        ).to(**like)
        with torch.no_grad():  # away from the start, where R = 0 and L has no gradient
            for parameter in similarity.parameters():
                parameter.add_(
                    0.1 * torch.randn(parameter.shape, generator=generator(args.seed, "away")).to(**like)
                )
        self.start, self.target = (
            Weights(*(flatten(tower).to(**like) for tower in shot)) for shot in saved["snapshots"]
        )
        self.model = build_model(
            args.image_encoder,
            saved["texts"].shape[1],
            pretrained=False,
            checkpoint_dir=args.checkpoint_dir,
            trainable=args.image_trainable,
            grad_checkpointing=args.grad_checkpointing,
        )
        self.model = self.model.to(**like).train()
        numbers = generator(args.seed, "minibatches")
        steps = 1 + args.repeats
        self.minibatches = [
            draw_minibatches(n, args.mini_batch_size, args.syn_steps, numbers, self.device)
            for _ in range(steps)
        ]
        self.shared = {"merge_towers": args.merge_loss_branches, "temperature": args.temperature}

    def gradients(self):
        """Copies on the CPU."""
        return {name: parameter.grad.cpu() for name, parameter in self.synthetic.named_parameters()}


def training_cell(args, folder):
    """T plain training steps, forward, backward and SGD: the floor under every scheme."""
    problem = _Problem(args, folder)
    optimizer = sgd(problem.model, 0.1, 0.1)

    def step(n):
        batches = [
            tuple(value.detach() for value in problem.synthetic.minibatch(ids))
            for ids in problem.minibatches[n]
        ]
        train_epoch(
            problem.model, batches, optimizer, LOSSES[args.loss_type], args.temperature, args.precision
        )

    seconds = timed(step, problem.device, args.repeats)
    return {"scheme": "training", "all": seconds} | spread(seconds) | {"peak_mb": peak_mb(problem.device)}


def matching_cell(args, folder, scheme, gradient, second_order):
    """Seconds and peak memory of the gradients of an outer step, and the gradients of every step; ours does
    not print them.
    """
    problem = _Problem(args, folder)
    loss_fn = LOSSES[args.loss_type]
    if scheme == "ours":
        options = {"path_device": args.path_device, "precision": args.precision, "compile": args.compile}
        take = Matcher(
            problem.model, loss_fn, gradient=gradient, second_order=second_order, **problem.shared, **options
        )
    elif scheme == "unroll":
        take = partial(oracles.unroll, problem.model, loss_fn=loss_fn, gradient=gradient, **problem.shared)
    else:
        take = partial(oracles.reference, problem.model, loss_fn=loss_fn, **problem.shared)
    found = []

    def step(n):
        take(problem.synthetic, problem.start, problem.target, problem.minibatches[n], seed=n)
        found.append(problem.gradients())

    seconds = timed(step, problem.device, args.repeats)
    torch.save(found, folder / f"{scheme}_{gradient}_{second_order}.pt")
    path_mb = args.syn_steps * sum(map(len, problem.start)) * 4 / 2**20
    path_mb *= 2 if (scheme, gradient, second_order) == ("ours", "full", "finite") else 1
    return (
        {"scheme": scheme, "gradient": gradient, "second_order": second_order}
        | spread(seconds)
        | {"peak_mb": peak_mb(problem.device), "path_mb": path_mb}
    )


def exact_cell(args, folder, gradient):
    """The same gradients in float64, by `forward`, which the tests hold against the whole unroll to 1e-9."""
    args.precision, args.grad_checkpointing = "fp32", False
    problem = _Problem(args, folder, torch.float64)
    matcher = Matcher(
        problem.model, LOSSES[args.loss_type], gradient=gradient, second_order="forward", **problem.shared
    )
    found = []
    for n, minibatches in enumerate(problem.minibatches):
        matcher(problem.synthetic, problem.start, problem.target, minibatches, seed=n)
        found.append(problem.gradients())
    torch.save(found, folder / f"exact_{gradient}.pt")
    return {}


def _agreement(folder, cell):
    """Per group of parameters, the worst cosine and relative error over the steps; {} where there is no exact
    gradient.
    """
    exact = folder / f"exact_{cell['gradient']}.pt"
    if not exact.exists():
        return {}
    steps = list(
        zip(
            *(
                torch.load(file, weights_only=True)[1:]
                for file in (folder / f"{cell['scheme']}_{cell['gradient']}_{cell['second_order']}.pt", exact)
            )
        )
    )
    result = {}
    for group, names in GROUPS.items():
        if names is None:
            names = [name for name in steps[0][0] if name.startswith("similarity.")]
        if names:
            pairs = [
                gradient_agreement(
                    *(torch.cat([side[name].flatten().double() for name in names]) for side in step)
                )
                for step in steps
            ]
            result[group] = {
                "cosine": min(pair["cosine"] for pair in pairs),
                "relative_error": max(pair["error"] for pair in pairs),
            }
    return result


def benchmark_matching(args, folder):
    """Rows for the cells that the flags name, beside the floor."""
    unknown = set(args.cells) - set(CELLS)
    if unknown:
        raise UserError(
            f"--cells {sorted(unknown)[0]!r} is unknown: expected names among {', '.join(CELLS)}."
        )
    if args.mini_batch_size > args.num_queries:
        raise UserError(
            f"--mini_batch_size {args.mini_batch_size} is more than the --num_queries {args.num_queries} pairs there are."
        )
    wanted = [cell for name, cell in CELLS.items() if not args.cells or name in args.cells]
    for scheme, _, second_order in wanted if args.cells else ():
        if scheme == "ours":
            require_combination(
                second_order,
                precision=args.precision,
                compile=args.compile,
                grad_checkpointing=args.grad_checkpointing,
            )
    _text_encoder(args, folder)
    failed = in_own_process(make_matching_problem, args, folder)
    if failed:
        raise UserError(f"The problem to measure cannot be made: {failed['error']}")
    floors, cells = [in_own_process(training_cell, args, folder)], []
    for scheme, gradient, second_order in wanted:
        result = in_own_process(matching_cell, args, folder, scheme, gradient, second_order)
        cells.append({"scheme": scheme, "gradient": gradient, "second_order": second_order} | result)
        print(
            f"{_cell_name(scheme, gradient, second_order)}: {result.get('error') or result}", file=sys.stderr
        )
        floors.append(
            in_own_process(training_cell, args, folder)
        )  # the floor between all cells: machines drift
    training = next((floor for floor in floors if "error" in floor), None) or floors[0] | spread(
        [s for floor in floors for s in floor["all"]]
    )
    training.pop("all", None)
    if args.exact:
        for gradient in GRADIENTS:
            if any(cell["gradient"] == gradient and "error" not in cell for cell in cells):
                failed = in_own_process(exact_cell, args, folder, gradient)
                if failed:
                    print(f"no exact gradient, {gradient}: {failed['error']}", file=sys.stderr)
    for cell in cells:
        if "error" not in cell:
            groups = _agreement(folder, cell)
            cell |= groups.get("pixels", {"cosine": None, "relative_error": None}) | {"groups": groups}
    result = {"training": training, "cells": cells}
    if args.whole:
        result["whole"] = whole_step(args, folder)
    print(_matching_table(result))
    return result


def _matching_table(result):
    floor = result["training"].get("seconds")
    reference = next((cell.get("seconds") for cell in result["cells"] if cell["scheme"] == "reference"), None)
    rows = []
    for cell in (result["training"], *result["cells"]):
        name = _cell_name(cell["scheme"], cell.get("gradient"), cell.get("second_order"))
        if "error" in cell:
            rows.append([name, cell["error"], *[""] * (7 + len(GROUPS))])
            continue
        seconds = cell["seconds"]
        rows.append(
            [
                name,
                *(f"{cell[key]:.3f}" for key in ("seconds", "min", "max")),
                cell["n"],
                _cells_text(seconds / floor if floor else None),
                _cells_text(reference / seconds if reference else None),
                _cells_text(cell["peak_mb"], 0),
                "" if cell.get("cosine") is None else f"{cell['cosine']:.7f}",
                *(
                    f"{cell['groups'][group]['relative_error']:.1e}"
                    if group in cell.get("groups", {})
                    else ""
                    for group in GROUPS
                ),
            ]
        )
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
        *(f"error {group}" for group in GROUPS),
    ]
    return aligned(header, rows)


_COLOURS = {"reference": "#9aa0a6", "unroll": "#9aa0a6", "ours": "#1a73e8"}


def draw_matching(result, path):
    """The table as a figure: seconds and memory of an outer step, beside T plain training steps."""
    cells = sorted(
        (cell for cell in result["cells"] if "error" not in cell), key=lambda cell: -cell["seconds"]
    )
    names = [_cell_name(cell["scheme"], cell["gradient"], cell["second_order"]) for cell in cells]
    figure = Figure(figsize=(10, 0.38 * len(cells) + 1.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, scale, label in (
        (panels[0], "seconds", 1, "seconds per outer step"),
        (panels[1], "peak_mb", 1024, "peak memory, GiB"),
    ):
        values = [cell[key] / scale for cell in cells]
        bars = axes.barh(names, values, color=[_COLOURS[cell["scheme"]] for cell in cells])
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        floor = result["training"][key] / scale
        axes.axvline(floor, color="#d93025", linewidth=1, label=f"T training steps: {floor:.2f}")
        axes.set(xlabel=label, xlim=(0, 1.15 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    settings = result["settings"]
    panels[0].set_title(
        f"{settings['image_encoder']}, {settings['image_size']} px, batch {settings['mini_batch_size']}, T = {settings['syn_steps']}; "
        f"{result['machine']['device']}, torch {result['machine']['torch']}",
        fontsize=9,
        loc="left",
    )
    with atomic_path(path) as partial:
        figure.savefig(partial, format=Path(path).suffix.removeprefix(".") or "svg")


# --- the whole outer step, as a user sees it ---


def write_published_size_buffer(args, folder):
    """One expert of _EPOCHS epochs in the layout of a buffer: start and target of the problem, then copies."""
    first, second = torch.load(folder / "problem.pt", weights_only=True)["snapshots"]
    write_expert(
        folder / "buffer",
        0,
        [
            Weights(*first),
            *([[piece.clone() for piece in tower] for tower in second] for _ in range(_EPOCHS)),
        ],
    )
    return {}


def whole_reference_cell(args, folder):
    """Reads the whole expert, builds the model with its BERT, takes the reference's gradients, steps, logs:
    every time.
    """
    problem = _Problem(args, folder)
    inside = []
    optimizer = outer_optimizer(
        problem.synthetic,
        lr_img=1,
        lr_txt=1,
        lr_lr=1e-4,
        lr_sim=1,
        momentum_syn=0.5,
        momentum_lr=0.5,
        momentum_sim=0.5,
    )

    def step(n):
        image, text = (
            torch.load(folder / "buffer" / f"{tower}_replay_buffer_0.pt", weights_only=True)
            for tower in ("img", "txt")
        )
        build_text_encoder(args.text_encoder, checkpoint_dir=args.checkpoint_dir).model.to(problem.device)
        model = build_model(
            args.image_encoder,
            problem.synthetic.texts.shape[1],
            pretrained=False,
            checkpoint_dir=args.checkpoint_dir,
        )
        model = model.to(problem.device).train()
        start, target = (
            Weights(flatten(image[0][epoch]).to(problem.device), flatten(text[0][epoch]).to(problem.device))
            for epoch in (0, 1)
        )
        synchronise(problem.device)
        began = time.perf_counter()
        loss = oracles.reference(
            model,
            problem.synthetic,
            start,
            target,
            problem.minibatches[n],
            LOSSES[args.loss_type],
            seed=n,
            **problem.shared,
        )
        synchronise(problem.device)
        inside.append(time.perf_counter() - began)
        optimizer.step()
        _append_log(folder, n, float(loss.grand))

    seconds = timed(step, problem.device, args.repeats)
    return _whole(seconds, inside[1:], problem.device)


def whole_cell(args, folder):
    """The outer loop of distill_lors.py itself, in its default mode."""
    problem = _Problem(args, folder)
    options = {"path_device": args.path_device, "precision": args.precision, "compile": args.compile}
    matcher = Matcher(problem.model, LOSSES[args.loss_type], **problem.shared, **options)
    inside = []

    def timed_matcher(*inner_loop):
        synchronise(problem.device)
        began = time.perf_counter()
        loss = matcher(*inner_loop)
        synchronise(problem.device)
        inside.append(time.perf_counter() - began)
        return loss

    objective = TrajectoryMatching(
        timed_matcher,
        ExpertTrajectories(folder / "buffer"),
        syn_steps=args.syn_steps,
        mini_batch_size=args.mini_batch_size,
        expert_epochs=1,
        max_start_epoch=1,
    )
    optimizer = outer_optimizer(
        problem.synthetic,
        lr_img=1,
        lr_txt=1,
        lr_lr=1e-4,
        lr_sim=1,
        momentum_syn=0.5,
        momentum_lr=0.5,
        momentum_sim=0.5,
    )
    loop = OuterLoop(problem.synthetic, objective, optimizer, clamp_lr=1e-3)

    def step(n):
        loop.update(objective(problem.synthetic, n, generator(args.seed, "step", n)))
        _append_log(folder, n, loop.unlogged["Loss/grand"])
        loop.recorded()

    seconds = timed(step, problem.device, args.repeats)
    return _whole(seconds, inside[1:], problem.device)


def _append_log(folder, step, loss):
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "Loss/grand": loss}) + "\n")


def _whole(seconds, inside, device):
    outside = statistics.median([whole - part for whole, part in zip(seconds, inside)])
    return spread(seconds) | {
        "outside_seconds": outside,
        "outside_share": outside / statistics.median(seconds),
        "peak_mb": peak_mb(device),
    }


def whole_step(args, folder):
    in_own_process(write_published_size_buffer, args, folder)
    result = {
        "reference": in_own_process(whole_reference_cell, args, folder),
        "ours": in_own_process(whole_cell, args, folder),
    }
    rows = [
        [name, cell["error"], "", "", ""]
        if "error" in cell
        else [
            name,
            f"{cell['seconds']:.3f}",
            f"{cell['outside_seconds']:.3f}",
            f"{cell['outside_share']:.1%}",
            cell["n"],
        ]
        for name, cell in result.items()
    ]
    print(aligned(["whole outer step", "seconds", "outside the gradients", "share", "n"], rows))
    if all("error" not in cell for cell in result.values()):
        for key, ratio in (("seconds", "ratio"), ("outside_seconds", "outside_ratio")):
            result[ratio] = result["reference"][key] / result["ours"][key]
        print(
            f"whole step {result['ratio']:.2f} times faster, its part outside the gradients {result['outside_ratio']:.1f} times\n"
        )
    return result


# --- retrieval ---


def naive_recall(scores, txt2img, ks=(1, 5, 10)):
    """Every query's candidates sorted in a Python loop, as the published codes do; ties against the model."""
    n, m = scores.shape
    image_of = txt2img.numpy()
    hits = {}
    for side, rows in (("img", scores.T), ("txt", scores)):
        ranks = np.empty(len(rows), dtype=int)
        for query, row in enumerate(rows.numpy()):
            order = np.argsort(-row, kind="stable")
            right = image_of == query if side == "txt" else np.arange(n) == image_of[query]
            best = row[right].max()
            tied_or_better = np.searchsorted(-row[order], -best, side="right")
            ranks[query] = tied_or_better - (right & (row >= best)).sum()
        hits |= {f"{side}_r{k}": 100.0 * float((ranks < k).mean()) for k in ks}
    return hits | {"r_mean": sum(hits.values()) / len(hits)}


def benchmark_retrieval(args, folder):
    """Recall from one score matrix of the size of COCO's 5k test split; the matrix product apart."""
    n, m = args.gallery
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    txt2img = torch.cat([torch.arange(n), torch.randint(n, (m - n,))])
    images = torch.nn.functional.normalize(torch.randn(n, 64), dim=1)
    texts = torch.nn.functional.normalize(images[txt2img] + 1.5 * torch.randn(m, 64) / 8, dim=1)
    scores = (images @ texts.T).mul(200).round().div(200)  # coarse, so that there are ties
    began = time.perf_counter()
    expected = naive_recall(scores, txt2img)
    naive = time.perf_counter() - began
    scores, txt2img = scores.to(device), txt2img.to(device)
    found = {}
    seconds = timed(lambda _: found.update(recall_from_scores(scores, txt2img)), device, args.repeats)
    ours = spread(seconds)
    identical = all(abs(found[key] - expected[key]) < 1e-9 for key in expected)
    rows = [
        ["argsort of every row", f"{naive:.3f}", ""],
        ["recall_from_scores", f"{ours['seconds']:.3f}", f"{naive / ours['seconds']:.1f}"],
    ]
    print(aligned([f"recall, {n} images x {m} texts", "seconds", "x faster"], rows))
    print(
        f"identical results, ties included: {'yes' if identical else 'NO'} (r_mean {expected['r_mean']:.3f})"
    )
    return {"naive_seconds": naive, "ours": ours, "ratio": naive / ours["seconds"], "identical": identical}


# --- trajectory ---


def _forget(files):
    """Drop the files from the page cache."""
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read():
    """Bytes that this process has caused to be read from storage."""
    return int(Path("/proc/self/io").read_text().split("\nread_bytes:")[1].split()[0])


def write_random_expert(args, folder):
    """An expert of _EPOCHS epochs of random weights, of the size of the flags' model."""
    model = build_model(args.image_encoder, 768, pretrained=False, checkpoint_dir=args.checkpoint_dir)
    write_expert(folder / "buffer", 0, [snapshot(model) for _ in range(1 + _EPOCHS)])
    return {
        "snapshot_bytes": sum(
            4 * parameter.numel() for tower in tower_parameters(model) for _, parameter in tower
        )
    }


def trajectory_cell(args, folder, whole):
    """Seconds and bytes from storage to get a start and a target, from files that nothing has cached and then
    cached.
    """
    files = sorted((folder / "buffer").glob("*.pt"))
    experts = ExpertTrajectories(folder / "buffer")

    def take(_=0):
        if whole:
            towers = [torch.load(file, weights_only=True)[0] for file in files]
            return [Weights(*(flatten(tower[epoch]) for tower in towers)) for epoch in (3, 4)]
        return experts.pair(0, 3, 1)

    _forget(files)
    before, began = _bytes_read(), time.perf_counter()
    take()
    cold = {"cold_seconds": time.perf_counter() - began, "bytes_read": _bytes_read() - before}
    return cold | spread(timed(take, torch.device("cpu"), args.repeats))


def rounding_cell(args, folder):
    """How the exact gradients agree, from start and target as they are and as --buffer_dtype bfloat16 stores
    them.
    """
    problem = _Problem(args, folder)
    rounded = [
        Weights(*(vector.bfloat16().float() for vector in weights))
        for weights in (problem.start, problem.target)
    ]
    result = {}
    for gradient in GRADIENTS:
        matcher = Matcher(
            problem.model, LOSSES[args.loss_type], gradient=gradient, second_order="reverse", **problem.shared
        )
        found = []
        for start, target in ((problem.start, problem.target), rounded):
            matcher(problem.synthetic, start, target, problem.minibatches[0], seed=0)
            found.append(problem.gradients())
        result[gradient] = {name: gradient_agreement(found[1][name], found[0][name]) for name in found[0]}
    moved = [(target - start).norm() / start.norm() for start, target in zip(problem.start, problem.target)]
    return result | {"moved": dict(zip(TOWERS, map(float, moved)))}


def rounding(args, folder):
    """The effect of --buffer_dtype bfloat16, on an expert that trained for --expert_steps from its start to
    its target.
    """
    _text_encoder(args, folder)
    failed = in_own_process(make_matching_problem, args, folder)
    result = failed or in_own_process(rounding_cell, args, folder)
    if "error" in result:
        raise UserError(f"The effect of rounding cannot be measured: {result['error']}")
    rows = [
        [f"{gradient}, {name}", f"{agreement['cosine']:.6f}", f"{agreement['error']:.1e}"]
        for gradient in GRADIENTS
        for name, agreement in result[gradient].items()
    ]
    print(aligned(["gradient with bfloat16 snapshots", "cosine", "error"], rows))
    moved = ", ".join(f"{tower} {share:.1%}" for tower, share in result["moved"].items())
    print(f"from start to target the weights moved by, of their norm: {moved}\n")
    return result


def benchmark_trajectory(args, folder):
    """`ExpertTrajectories.sample` against loading the whole expert, from a buffer of the flags' model; what
    bfloat16 snapshots cost.
    """
    written = in_own_process(write_random_expert, args, folder)
    result = {
        name: in_own_process(trajectory_cell, args, folder, name == "whole") for name in ("whole", "sample")
    }
    for cell in (written, *result.values()):
        if "error" in cell:
            raise UserError(f"The buffer cannot be measured: {cell['error']}")
    size = written["snapshot_bytes"]
    rows = []
    for name, label in (("whole", "load the whole expert"), ("sample", "sample()")):
        cell = result[name]
        cell["snapshots_read"] = cell["bytes_read"] / size
        rows.append(
            [
                label,
                f"{cell['bytes_read'] / 2**20:.0f}",
                f"{cell['snapshots_read']:.2f}",
                f"{cell['cold_seconds']:.3f}",
                f"{cell['seconds']:.3f}",
            ]
        )
    print(
        aligned(
            [
                f"{1 + _EPOCHS} snapshots of {size / 2**20:.0f} MB",
                "MB read",
                "in snapshots",
                "seconds, uncached",
                "cached",
            ],
            rows,
        )
    )
    return result | written | {"bfloat16": rounding(args, folder)}


# --- evaluate ---


def evaluate_cell(args):
    """Passes over the test gallery: decoded once and kept, against decoding every file each time."""
    device = torch.device(args.device)
    task = open_task(args, device)
    _, _, test = build_datasets(
        args.dataset,
        args.image_root,
        args.ann_root,
        image_size=args.image_size,
        augment=False,
        toy_sizes=args.toy_size,
    )
    torch.manual_seed(args.seed)
    model = model_maker(args, task, device)().to(device).eval()
    kept = task.galleries["test"]

    @torch.no_grad()
    def decoding(_):
        loader = DataLoader(test, batch_size=256, num_workers=args.num_workers if len(test) > 500 else 0)
        images = torch.cat([model.encode_images(normalise(batch.to(device))) for batch in loader])
        return retrieval_recall(images, model.encode_texts(kept.texts.to(device)), kept.txt2img)

    results = {}
    for name, one_pass in (("decoding", decoding), ("cached", lambda _: gallery_recall(model, kept, device))):
        results[name] = spread(timed(one_pass, device, args.repeats))
        results[name]["passes_per_second"] = 1 / results[name]["seconds"]
    return results | {"images": len(kept.images), "texts": len(kept.texts)}


def benchmark_evaluate(args, folder):
    """Evaluation passes a second, with and without the cached gallery."""
    result = in_own_process(evaluate_cell, args)
    if "error" in result:
        raise UserError(result["error"])
    rows = [
        [name, f"{result[name]['seconds']:.3f}", f"{result[name]['passes_per_second']:.2f}"]
        for name in ("decoding", "cached")
    ]
    print(
        aligned(
            [f"a pass over {result['images']} images, {result['texts']} texts", "seconds", "passes a second"],
            rows,
        )
    )
    result["ratio"] = result["decoding"]["seconds"] / result["cached"]["seconds"]
    print(f"cached {result['ratio']:.2f} times faster")
    return result


# --- vas ---

_FRACTIONS = (0.45, 0.3)  # DataComp small: of the pool, by CLIP score and by VAS
_WIDTH, _FILE_ROWS, _ROUNDS = 768, 250_000, 168  # rounds: the paper's for DataComp small


def make_pool(folder, rows, seed):
    """A pool of random unit vectors with a mean and a decaying spectrum, as CLIP's have, in DataComp's files;
    and a prior's moment.
    """
    folder.mkdir()
    numbers = torch.Generator().manual_seed(seed)
    spectrum = (1 + torch.arange(_WIDTH)) ** -0.5
    centre = torch.randn(_WIDTH, generator=numbers) * spectrum

    def vectors(n):
        return torch.nn.functional.normalize(torch.randn(n, _WIDTH, generator=numbers) * spectrum + centre)

    for begin in range(0, rows, _FILE_ROWS):
        n = min(_FILE_ROWS, rows - begin)
        uids = [
            f"{value:032x}"
            for value in ((begin + i) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128) for i in range(n))
        ]
        scores = (0.2 + 0.05 * torch.randn(n, generator=numbers)).half().float().numpy()
        name = f"{begin:032x}"
        pyarrow.parquet.write_table(
            pyarrow.table({"uid": uids, "clip_l14_similarity_score": scores}), folder / f"{name}.parquet"
        )
        np.savez(
            folder / f"{name}.npz",
            l14_img=torch.cat([vectors(min(50_000, n - at)) for at in range(0, n, 50_000)]).half().numpy(),
        )
    prior = vectors(20_000).double()
    np.save(folder / "prior.npy", (prior.T @ prior / len(prior)).numpy())
    return {}


def vas_cell(folder, name, seed):
    """Seconds and peak memory of one way to filter the pool; what is left is in <name>.npy."""
    out, device = folder.with_name(f"{folder.name}_{name}.npy"), torch.device("cpu")
    began = time.perf_counter()
    moment = np.load(folder / "prior.npy")
    if name == "in memory":
        np.save(out, vas_in_memory(folder, moment, *_FRACTIONS))
    else:
        selection = vas.Selection(
            pool.Pool(folder, *vas.ARCHITECTURES["l14"]), out, fraction=_FRACTIONS[0], device=device
        )
        if name == "static":
            chosen, _ = selection.by_prior(torch.from_numpy(moment), fraction=_FRACTIONS[1])
        else:
            chosen, summary = selection.by_rounds(_FRACTIONS[1], _ROUNDS, bound=name == "bounded")
        selection.write(chosen, {}, {})
    result = {"seconds": time.perf_counter() - began, "peak_mb": peak_mb(device)}
    return result | (
        {"scored": summary["scored"], "shrink_seconds": summary["seconds"]}
        if name in ("bounded", "every row")
        else {}
    )


def benchmark_vas(args, folder):
    """Static VAS against all of it in memory with NumPy; the rounds of VAS-D with the eigenvalue bound
    against scoring every row.
    """
    result, rows, cells = {}, [], ("in memory", "static", "bounded", "every row")
    for size in map(int, args.pool):
        failed = in_own_process(make_pool, folder / str(size), size, args.seed)
        if failed:
            raise UserError(f"The pool cannot be made: {failed['error']}")
        result[size] = {
            name: in_own_process(vas_cell, folder / str(size), name, args.seed)
            for name in (cells if size <= 200_000 else cells[:2])
        }
        files = {
            name: (folder / f"{size}_{name}.npy").read_bytes()
            for name, cell in result[size].items()
            if "error" not in cell
        }
        for name, cell in result[size].items():
            if "error" in cell:
                rows.append([f"{size:,} rows, {name}", cell["error"], "", ""])
                continue
            twin = {"static": "in memory", "bounded": "every row"}.get(name)
            cell["same_set"] = files[name] == files[twin] if twin in files else None
            detail = (
                f"{cell['shrink_seconds']:.1f} s of it in {_ROUNDS} rounds, {cell['scored']:,} scores"
                if "scored" in cell
                else ""
            )
            same = {True: "same set", False: "ANOTHER SET", None: ""}[cell["same_set"]]
            rows.append(
                [
                    f"{size:,} rows, {name}",
                    f"{size / cell['seconds']:,.0f}",
                    f"{cell['seconds']:.1f}",
                    f"{cell['peak_mb']:,.0f}",
                    same,
                    detail,
                ]
            )
    print(aligned(["pool", "rows a second", "seconds", "peak MB", "", ""], rows))
    return {"pools": result}


BENCHMARKS = {
    "matching": benchmark_matching,
    "retrieval": benchmark_retrieval,
    "trajectory": benchmark_trajectory,
    "evaluate": benchmark_evaluate,
    "vas": benchmark_vas,
}


def gallery(text):
    """`IMAGES,TEXTS` as two counts."""
    parts = [count(part) for part in text.split(",")]
    if len(parts) != 2 or parts[1] < parts[0]:
        raise argparse.ArgumentTypeError(f"expected IMAGES,TEXTS with at least a text an image, not {text!r}")
    return tuple(parts)


def make_parser():
    parser = program_parser(__doc__, folder=False)
    parser.add_argument("what", choices=BENCHMARKS, help="what to measure")
    parser.set_defaults(
        dataset="toy",
        toy_size=(64, 8, 8),
        no_aug=True,
        image_encoder="nfnet_l0",
        image_size=128,
        image_pretrained=False,
    )
    add = parser.group("benchmark")
    add("--repeats", count, 3, "measured repetitions, after one that warms up")
    add(
        "--cells",
        flags.names,
        (),
        "matching: only these, such as reference,ours/full/finite (default: all)",
        metavar="NAME,...",
    )
    add("--exact", bool, True, "matching: errors against float64 gradients of the same kind")
    add("--whole", bool, False, "matching: also the whole outer step, reading and building included")
    add(
        "--figure",
        str,
        None,
        "matching: also draw the table, as .svg, .png or .pdf (default: no figure)",
        metavar="FILE",
    )
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
    return parser


def main(argv=None):
    args = flags.parse(make_parser(), argv)
    device = resolve_device(args.device)
    args.device = str(device)
    settings = {key: value for key, value in vars(args).items() if key not in ("config", "what", "figure")}
    machine = provenance(describe_device(device), args.seed)
    print(
        ", ".join(
            f"{key} {value}" for key, value in machine.items() if key not in ("command", "started", "seed")
        ),
        file=sys.stderr,
    )
    with tempfile.TemporaryDirectory() as folder:
        result = BENCHMARKS[args.what](args, Path(folder))
    result = {"benchmark": args.what, "settings": settings, "machine": machine} | result
    if args.figure and args.what == "matching":
        draw_matching(result, args.figure)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    sys.exit(run_program(main))

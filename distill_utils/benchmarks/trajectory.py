"""A start and a target out of a buffer: what is read for them, and what snapshots in bfloat16 change."""

import os
import time
from pathlib import Path

import torch

from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import required, spread, timed
from distill_utils.benchmarks.problem import PUBLISHED_EPOCHS, Problem, make_problem
from distill_utils.evaluation.tables import aligned
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.matching.checks import gradient_agreement
from distill_utils.matching.gradient import GRADIENTS, Matcher
from networks import build_model
from networks.weights import TOWERS, Weights, flatten, snapshot, tower_parameters


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
    """An expert of random weights, of the size of the flags' model and of the published length."""
    model = build_model(args.image_encoder, 768, pretrained=False, checkpoint_dir=args.checkpoint_dir)
    write_expert(folder / "buffer", 0, [snapshot(model) for _ in range(1 + PUBLISHED_EPOCHS)])
    parameters = (parameter for tower in tower_parameters(model) for _, parameter in tower)
    return {"snapshot_bytes": sum(4 * parameter.numel() for parameter in parameters)}


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
        return experts.pair(0, Weights(3, 3), 1)

    _forget(files)
    before, began = _bytes_read(), time.perf_counter()
    take()
    cold = {"cold_seconds": time.perf_counter() - began, "bytes_read": _bytes_read() - before}
    return cold | spread(timed(take, torch.device("cpu"), args.repeats))


def rounding_cell(args, folder):
    """How the exact gradients agree, from start and target as they are and as --buffer_dtype bfloat16 stores
    them.
    """
    problem = Problem(args, folder)
    exact = (problem.start, problem.target)
    rounded = [Weights(*(vector.bfloat16().float() for vector in weights)) for weights in exact]
    result = {}
    for gradient in GRADIENTS:
        how = {"gradient": gradient, "second_order": "reverse"}
        matcher = Matcher(problem.model, problem.loss_fn, **how, **problem.shared)
        found = []
        for start, target in (exact, rounded):
            matcher(problem.synthetic, start, target, problem.minibatches[0], seed=0)
            found.append(problem.gradients())
        result[gradient] = {name: gradient_agreement(found[1][name], found[0][name]) for name in found[0]}
    moved = [(target - start).norm() / start.norm() for start, target in zip(*exact)]
    return result | {"moved": dict(zip(TOWERS, map(float, moved)))}


def rounding(args, folder):
    """The effect of --buffer_dtype bfloat16, on an expert that trained for --expert_steps from its start to
    its target.
    """
    make_problem(args, folder)
    result = cells.in_own_process(rounding_cell, args, folder)
    required(result, "The effect of rounding cannot be measured")
    rows = [
        [f"{gradient}, {name}", f"{agreement['cosine']:.6f}", f"{agreement['error']:.1e}"]
        for gradient in GRADIENTS
        for name, agreement in result[gradient].items()
    ]
    print(aligned(["gradient with bfloat16 snapshots", "cosine", "error"], rows))
    moved = ", ".join(f"{tower} {share:.1%}" for tower, share in result["moved"].items())
    print(f"from start to target the weights moved by, of their norm: {moved}\n")
    return result


def benchmark(args, folder):
    """`ExpertTrajectories.sample` against loading the whole expert, from a buffer of the flags' model; what
    bfloat16 snapshots cost.
    """
    complaint = "The buffer cannot be measured"
    written = required(cells.in_own_process(write_random_expert, args, folder), complaint)
    size, result, rows = written["snapshot_bytes"], {}, []
    for name, label in (("whole", "load the whole expert"), ("sample", "sample()")):
        cell = required(cells.in_own_process(trajectory_cell, args, folder, name == "whole"), complaint)
        result[name] = cell | {"snapshots_read": cell["bytes_read"] / size}
        row = [label, f"{cell['bytes_read'] / 2**20:.0f}", f"{result[name]['snapshots_read']:.2f}"]
        rows.append([*row, *(f"{cell[key]:.3f}" for key in ("cold_seconds", "seconds"))])
    header = [f"{1 + PUBLISHED_EPOCHS} snapshots of {size / 2**20:.0f} MB", "MB read", "in snapshots"]
    print(aligned([*header, "seconds, uncached", "cached"], rows))
    return result | written | {"bfloat16": rounding(args, folder)}

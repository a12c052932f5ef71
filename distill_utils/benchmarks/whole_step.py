"""The whole outer step as a user sees it: reading, building, the gradients, the update, the log."""

import json
import statistics
import time

import torch

from distill_utils.benchmarks import cells
from distill_utils.benchmarks.cells import spread, timed
from distill_utils.benchmarks.problem import PUBLISHED_EPOCHS, Problem, read_problem
from distill_utils.distillation.outer_loop import OuterLoop
from distill_utils.evaluation.tables import aligned
from distill_utils.experts.starts import open_starts
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.matching import oracles
from distill_utils.matching.gradient import Matcher
from distill_utils.matching.objective import TrajectoryMatching
from distill_utils.runs.devices import peak_mb, synchronise
from distill_utils.runs.seeds import generator
from networks.text_encoders import build_text_encoder
from networks.weights import Weights, flatten


def write_published_size_buffer(folder):
    """One expert in the layout of a buffer: start and target of the problem, then copies."""
    first, second = read_problem(folder)["snapshots"]
    later = ([[piece.clone() for piece in tower] for tower in second] for _ in range(PUBLISHED_EPOCHS))
    write_expert(folder / "buffer", 0, [Weights(*first), *later])
    return {}


def whole_reference_cell(args, folder):
    """Reads the whole expert, builds the model with its BERT, takes the reference's gradients, steps, logs:
    every time.
    """
    problem = Problem(args, folder)
    optimizer = problem.outer_optimizer()
    gradients = _Timed(oracles.reference, problem.device)

    def step(n):
        image, text = (
            torch.load(folder / "buffer" / f"{tower}_replay_buffer_0.pt", weights_only=True)
            for tower in ("img", "txt")
        )
        build_text_encoder(args.text_encoder, checkpoint_dir=args.checkpoint_dir).model.to(problem.device)
        model = problem.build_model().to(problem.device).train()
        start, target = (
            Weights(*(flatten(tower[0][epoch]).to(problem.device) for tower in (image, text)))
            for epoch in (0, 1)
        )
        inner_loop = (problem.synthetic, start, target, problem.minibatches[n], problem.loss_fn)
        loss = gradients(model, *inner_loop, seed=n, **problem.shared)
        optimizer.step()
        _append_log(folder, n, float(loss.grand))

    return _measured(step, gradients, problem.device, args.repeats)


def whole_cell(args, folder):
    """The outer loop of distill_lors.py itself, in its default mode."""
    problem = Problem(args, folder)
    matcher = Matcher(problem.model, problem.loss_fn, **problem.shared, **problem.speed)
    gradients = _Timed(matcher, problem.device)
    inner_loop = {"syn_steps": args.syn_steps, "mini_batch_size": args.mini_batch_size}
    experts = ExpertTrajectories(folder / "buffer")
    first = open_starts("joint", experts, 0, 1, 1)
    objective = TrajectoryMatching(gradients, experts, **inner_loop, expert_epochs=1, starts=first)
    loop = OuterLoop(problem.synthetic, objective, problem.outer_optimizer(), clamp_lr=1e-3)

    def step(n):
        loop.update(objective(problem.synthetic, n, generator(args.seed, "step", n)))
        _append_log(folder, n, loop.unlogged["Loss/grand"])
        loop.recorded()

    return _measured(step, gradients, problem.device, args.repeats)


class _Timed:
    """A function, and in `seconds` how long each of its calls took."""

    def __init__(self, function, device):
        self.function, self.device, self.seconds = function, device, []

    def __call__(self, *args, **options):
        synchronise(self.device)
        began = time.perf_counter()
        result = self.function(*args, **options)
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - began)
        return result


def _append_log(folder, step, loss):
    with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "Loss/grand": loss}) + "\n")


def _measured(step, gradients, device, repeats):
    seconds = timed(step, device, repeats)
    outside = statistics.median(whole - part for whole, part in zip(seconds, gradients.seconds[1:]))
    shares = {"outside_seconds": outside, "outside_share": outside / statistics.median(seconds)}
    return spread(seconds) | shares | {"peak_mb": peak_mb(device)}


def whole_step(args, folder):
    """Both whole outer steps, printed; a failed one is its row's error."""
    cells.in_own_process(write_published_size_buffer, folder)
    both = {"reference": whole_reference_cell, "ours": whole_cell}
    result = {name: cells.in_own_process(cell, args, folder) for name, cell in both.items()}
    header, rows = ["whole outer step", "seconds", "outside the gradients", "share", "n"], []
    for name, cell in result.items():
        if "error" in cell:
            rows.append([name, cell["error"], "", "", ""])
            continue
        seconds = [f"{cell[key]:.3f}" for key in ("seconds", "outside_seconds")]
        rows.append([name, *seconds, f"{cell['outside_share']:.1%}", cell["n"]])
    print(aligned(header, rows))
    if all("error" not in cell for cell in result.values()):
        for key, ratio in (("seconds", "ratio"), ("outside_seconds", "outside_ratio")):
            result[ratio] = result["reference"][key] / result["ours"][key]
        print(
            f"whole step {result['ratio']:.2f} times faster, its part outside the gradients "
            f"{result['outside_ratio']:.1f} times\n"
        )
    return result

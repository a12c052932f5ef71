"""Distil a data set into a few learned pairs: `python distill_lors.py --dataset flickr --num_queries 99`
(experts first: buffer.py).

LoRS (arXiv 2406.03793): images, text embeddings, their similarity S and two learning rates are learned so
that a student trained on them moves as an expert moved on the real data.
"""

import sys

from distill_utils.distillation.from_flags import open_loop, open_set, require_flags_that_combine
from distill_utils.distillation.objectives import OBJECTIVES
from distill_utils.distillation.optimizer import LEARNABLE, learnable
from distill_utils.distillation.recording import is_finished
from distill_utils.distillation.seeds import distill_seeds
from distill_utils.experts.starts import STARTS
from distill_utils.matching.derivatives import DERIVATIVES
from distill_utils.matching.gradient import GRADIENTS
from distill_utils.matching.objective import MINIBATCHES
from distill_utils.runs import flags
from distill_utils.runs.flags import below_one, count, non_negative, positive, whole
from distill_utils.runs.folder import Run
from distill_utils.runs.seeds import generator
from distill_utils.runs.signals import run_program
from distill_utils.selection.coresets import CORESETS
from distill_utils.synthetic.similarity import SIM_TYPES
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.losses import LOSSES


def make_parser():
    parser = program_parser(__doc__)
    add = parser.group("synthetic set")
    flags.buffer_path_flag(add)
    add("--num_queries", count, 99, "pairs in the synthetic set")
    add("--init", CORESETS, "random", "pairs to begin with, by a coreset method (of the first expert)")
    what = "train pairs to begin with, in a .npy, in place of --init (default: none)"
    add("--init_indices", str, None, what, metavar="NPY")
    add("--pix_init", ("real", "noise"), "real", "initial images")
    add("--txt_init", ("real", "noise"), "real", "initial text embeddings")
    add("--sim_type", SIM_TYPES, "lowrank", "similarity S; expert: an expert's, not learned")
    add("--sim_rank", count, 10, "rank r of S = diag(w) + alpha / r * L R^T")
    add("--alpha", positive, 3.0, "weight of the low-rank part of S")
    add("--learn", learnable, LEARNABLE, "what the outer step changes", metavar="NAME,...")
    matching_flags(parser)
    distribution_flags(parser)
    optimiser_flags(parser)
    add = flags.student_flags(parser)
    add("--eval_it", count, 50, "outer steps between evaluations, each of which saves the set")
    add("--num_eval_during", count, 2, "students of an evaluation before the last, at most --num_eval")
    add("--measurements", count, 5, "times that a student before the last evaluation is measured")
    add("--eval_test", bool, False, "measure test at every evaluation, as published, not at the end alone")
    add("--num_seeds", count, 1, "whole distillations, each a run of its own: NAME_seed0, NAME_seed1, ...")
    add = parser.group("going on")
    add("--save_it", count, 50, "outer steps between states saved (at evaluations and signals too)")
    add("--resume", ("auto", "never"), "auto", "auto: the same command goes on where its run was stopped")
    flags.fresh_flag(parser)
    add(
        "--resume_from",
        str,
        None,
        "begin with another run's folder, state or set (default: real pairs)",
        metavar="PATH",
    )
    return parser


def matching_flags(parser):
    add = parser.group("matching")
    add("--Iteration", count, 3000, "outer steps")
    what = "what an outer step minimises; of trajectory matching is all below"
    add("--objective", OBJECTIVES, "trajectory", what)
    add("--syn_steps", count, 8, "inner steps T of the student")
    add("--mini_batch_size", count, 20, "synthetic pairs in an inner step")
    drawn = "chunks of a permutation, drawn anew when used up, or a draw for every inner step"
    add("--minibatches", MINIBATCHES, "permutation", drawn)
    add("--expert_epochs", count, 1, "epochs from the start snapshot to the target")
    add("--max_start_epoch", count, 2, "start snapshots are epochs --min_start_epoch .. this - 1")
    add("--min_start_epoch", whole, 0, "the first of them")
    starts = "one epoch for both towers; one for each; or one for each, of ranges read off the experts (AMD)"
    add("--start_epochs", STARTS, "joint", starts)
    shortcut = "match straight lines from the experts' start to this epoch (PTM-ST); 0: their own paths"
    add("--shortcut", whole, 0, shortcut, metavar="EPOCH")
    blend = "mix the pairs of inner steps by weights of Beta(A, A), on a frozen tower (RepBlend); 0: do not"
    add("--blend", non_negative, 0.0, blend, metavar="A")
    add("--loss_type", LOSSES, "WBCE", "loss on the synthetic set")
    add("--merge_loss_branches", bool, False, "one normalised distance for both towers, not the sum of two")
    add("--gradient", GRADIENTS, "truncated", "exact gradient of the unroll, or TESLA's")
    add("--second_order", DERIVATIVES, "finite", "how the second derivative is taken")
    add("--check_gradient", whole, 0, "every K outer steps, compare with --second_order forward", metavar="K")
    flags.speed_flags(add)


def distribution_flags(parser):
    add = parser.group("objectives mdm and covmatch")
    add("--real_batch", count, 64, "real pairs of a step, and synthetic ones where there are as many")
    add("--distribution_weight", non_negative, 0.8, "w of mdm, lambda of covmatch (published: .1, .6 at 500)")
    add("--kernel_sigma", positive, 0.5, "mdm: sigma of the kernel of angles")
    add("--covariance_rho", positive, 1.0, "covmatch: rho (published: 2 at 100 pairs)")
    add("--reset_it", count, 50, "covmatch: steps after which the model begins anew")


def optimiser_flags(parser):
    add = parser.group("outer optimiser (SGD)")
    add("--lr_img", non_negative, 100.0, "step size of the images")
    add("--lr_txt", non_negative, 100.0, "step size of the text embeddings")
    add("--lr_sim", non_negative, 10.0, "step size of the similarity")
    add("--lr_lr", non_negative, 0.01, "step size of the two learned learning rates")
    add("--lr_teacher_img", positive, 0.1, "initial learned learning rate of the image tower")
    add("--lr_teacher_txt", positive, 0.1, "initial learned learning rate of the text head")
    add("--momentum_syn", non_negative, 0.5, "momentum of images and texts")
    add("--momentum_lr", non_negative, 0.5, "momentum of the learned learning rates")
    add("--momentum_sim", non_negative, 0.5, "momentum of the similarity")
    average = "evaluate and save this moving average of images, texts and S (PTM-ST: .99); 0: the set itself"
    add("--ema", below_one, 0.0, average, metavar="D")
    clip = "largest norm of an outer step's whole gradient, scaled down to it (MDM: 1); 0: as it is"
    add("--clip_grad", non_negative, 0.0, clip, metavar="NORM")
    add("--clamp_lr", positive, 1e-3, "the learned learning rates never fall below this")
    add("--max_lr", positive, 10.0, "nor rise above this")
    add("--max_bad_steps", count, 5, "steps without a finite gradient before the last good set is restored")


def main(argv=None):
    """The run's folder; of several seeds a list of them."""
    args = flags.parse(make_parser(), argv)
    require_flags_that_combine(args)
    name = f"lors_{args.num_queries}"
    if args.num_seeds > 1:
        return distill_seeds(
            main,
            sys.argv[1:] if argv is None else argv,
            args.name or name,
            range(args.seed, args.seed + args.num_seeds),
        )
    run = Run(args, "distill", default_name=name, resume=args.resume == "auto", divided=True)
    if is_finished(run.state, args.Iteration):
        done = f"{run.directory} already has its {run.state['step']} outer steps"
        print(f"{done}: --Iteration for more, --fresh to begin anew.")
        return run.directory

    task = open_task(args, run.device)
    make_model = model_maker(args, task, run.device)
    state, synthetic = open_set(args, run, task, make_model)
    objective = OBJECTIVES[args.objective](args, run, task, make_model)
    loop, recorder = open_loop(args, run, synthetic, objective, state, task, make_model)

    with recorder.keeping():  # whatever ends the run, what was computed is saved
        recorder.record()  # the set that it begins with
        while loop.step < args.Iteration:  # Algorithm 1
            draws = generator(args.seed, "step", loop.step + 1)
            # Fills .grad of all that is learned; by trajectory matching: an expert's start and target, and
            # T inner steps of the student between them.
            outcome = objective(synthetic, loop.step + 1, draws)
            # SGD on images, texts, S and the learned rates; a step that is not finite is skipped.
            loop.update(outcome)
            # The log; at its time an evaluation and a state to go on from.
            recorder.record()
    recorder.say_what_came_out()
    run.finish()
    return run.directory


if __name__ == "__main__":
    sys.exit(run_program(main, "--mini_batch_size"))

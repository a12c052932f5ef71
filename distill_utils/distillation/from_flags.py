"""What the flags of a distillation describe, as objects: the set, the outer loop, its record."""

from functools import partial

from distill_utils.distillation.averaging import Average
from distill_utils.distillation.objectives import open_trajectories
from distill_utils.distillation.optimizer import outer_optimizer
from distill_utils.distillation.outer_loop import OuterLoop
from distill_utils.distillation.recording import Recorder
from distill_utils.distillation.start import (
    expert_similarity,
    initial_pairs,
    initial_set,
    other_start,
    require_same_set,
)
from distill_utils.evaluation.students import evaluate_synthetic_set
from distill_utils.matching.checks import require_combination
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.selection.features import chosen_pairs
from distill_utils.synthetic.checkpoint import require_fits
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import FixedSimilarity, build_similarity
from distill_utils.task.from_flags import made_with


def require_flags_that_combine(args):
    if args.mini_batch_size > args.num_queries:
        size = f"--mini_batch_size {args.mini_batch_size}"
        raise UserError(f"{size} is more than the --num_queries {args.num_queries} pairs there are.")
    if args.objective != "trajectory" and args.precision == "bf16":
        raise UserError(
            f"--objective {args.objective} does not compute in bf16: give --precision fp32 or tf32."
        )
    how = {key: getattr(args, key) for key in ("precision", "compile", "grad_checkpointing")}
    require_combination(args.second_order, **how)
    if args.check_gradient and args.grad_checkpointing:
        raise UserError(
            "--check_gradient takes second derivatives, which do not go with --grad_checkpointing."
        )
    if args.blend and args.image_trainable:
        raise UserError(
            f"--blend {args.blend} mixes what a frozen image tower makes of the images: give it with "
            "--image_trainable false."
        )
    if args.max_lr < args.clamp_lr:
        raise UserError(f"--max_lr {args.max_lr} is below --clamp_lr {args.clamp_lr}.")


def open_set(args, run, task, make_model):
    """(state or None, SyntheticSet): what this run, or the one of --resume_from, left; else the set to begin
    with. On the run's device.
    """
    state, synthetic = _found_set(args, run, task, make_model)
    return state, synthetic.to(run.device)


def _found_set(args, run, task, make_model):
    if run.state:
        return run.state, SyntheticSet.from_saved(run.state.get("set"), run.directory / "state.pt")
    meta = made_with(args, task) | {"loss": args.loss_type, "temperature": args.temperature}
    if args.resume_from:
        state, synthetic = other_start(args.resume_from, args.sim_type, args.alpha)
        require_fits(synthetic, task, args.resume_from)
        flags = {key: getattr(args, key) for key in ("num_queries", "sim_type", "sim_rank", "alpha")}
        require_same_set(synthetic, meta | flags, args.resume_from)
        return state, synthetic
    return None, _first_set(args, run, task, meta, make_model, generator(args.seed, "distill"))


def _first_set(args, run, task, meta, make_model, generator):
    """The synthetic set that a run begins with."""
    if args.init_indices:
        pairs = initial_pairs(args.init_indices, task, args.num_queries)
    else:
        pairs = chosen_pairs(args.init, args, task, lambda: make_model, run.device, generator)
    by_expert = args.sim_type == "expert"
    similarity = build_similarity(
        "identity" if by_expert else args.sim_type,
        args.num_queries,
        rank=args.sim_rank,
        alpha=args.alpha,
        generator=generator,
    )
    synthetic = initial_set(
        task,
        pairs,
        similarity,
        pix_init=args.pix_init,
        txt_init=args.txt_init,
        lrs=(args.lr_teacher_img, args.lr_teacher_txt),
        generator=generator,
        meta=meta,
    )
    if by_expert:
        last = open_trajectories(args, made_with(args, task)).last(0)
        model = make_model().to(run.device)
        synthetic = synthetic.to(run.device)
        synthetic.similarity = FixedSimilarity(expert_similarity(model, last, synthetic))
    return synthetic


def open_loop(args, run, synthetic, objective, state, task, make_model):
    """The OuterLoop and its Recorder, where `state` left them."""
    optimizer = outer_optimizer(
        synthetic,
        lr_img=args.lr_img,
        lr_txt=args.lr_txt,
        lr_lr=args.lr_lr,
        lr_sim=args.lr_sim,
        momentum_syn=args.momentum_syn,
        momentum_lr=args.momentum_lr,
        momentum_sim=args.momentum_sim,
        learn=args.learn,
    )
    evaluations = state.get("evaluations", {}) if state else {}
    loop = OuterLoop(
        synthetic,
        objective,
        optimizer,
        clamp_lr=args.clamp_lr,
        max_lr=args.max_lr,
        max_bad_steps=args.max_bad_steps,
        last_good=lambda: SyntheticSet.load(run.directory / f"distilled_{max(evaluations)}.pt"),
        average=Average(synthetic, args.ema) if args.ema else None,
        clip_grad=args.clip_grad,
    )
    if state:
        loop.load_state(state, args.resume_from or run.directory / "state.pt")
    evaluate = partial(
        evaluate_synthetic_set,
        task=task,
        make_model=make_model,
        epochs=args.epoch_eval_train,
        batch_size=args.batch_eval,
        loss_type=args.loss_type,
        temperature=args.temperature,
        device=run.device,
        precision=args.precision,
        world=run.world,
    )
    look = partial(
        evaluate,
        seed=derive_seed(args.seed, "during"),
        num_eval=min(args.num_eval_during, args.num_eval),
        measurements=args.measurements,
        splits=("val", "test") if args.eval_test else ("val",),
    )
    test = partial(evaluate, seed=derive_seed(args.seed, "test"), num_eval=args.num_eval)
    known = {"evaluations": evaluations, "tested": state.get("tested") if state else None}
    times = {"last_step": args.Iteration, "eval_it": args.eval_it, "save_it": args.save_it}
    return loop, Recorder(run, loop, task, look, test, **known, **times)

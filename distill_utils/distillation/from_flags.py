"""What the flags of a distillation describe, as objects: the set, the experts, the objective, the outer loop,
its record.
"""

from functools import partial

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
from distill_utils.experts.folder import experts_folder, require_same_experts
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.matching.checks import require_combination, require_no_running_statistics
from distill_utils.matching.gradient import Matcher
from distill_utils.matching.objective import TrajectoryMatching
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.selection.coresets import select
from distill_utils.synthetic.checkpoint import require_fits
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import FixedSimilarity, build_similarity
from distill_utils.training.losses import LOSSES


def require_flags_that_combine(args):
    if args.mini_batch_size > args.num_queries:
        size = f"--mini_batch_size {args.mini_batch_size}"
        raise UserError(f"{size} is more than the --num_queries {args.num_queries} pairs there are.")
    how = {key: getattr(args, key) for key in ("precision", "compile", "grad_checkpointing")}
    require_combination(args.second_order, **how)
    if args.check_gradient and args.grad_checkpointing:
        raise UserError(
            "--check_gradient takes second derivatives, which do not go with --grad_checkpointing."
        )
    if args.max_lr < args.clamp_lr:
        raise UserError(f"--max_lr {args.max_lr} is below --clamp_lr {args.clamp_lr}.")


def open_set(args, run, task, meta):
    """(state or None, SyntheticSet): what this run, or the one of --resume_from, left; else the set to begin
    with.
    """
    if run.state:
        return run.state, SyntheticSet.from_saved(run.state.get("set"), run.directory / "state.pt")
    meta = meta | {"loss": args.loss_type, "temperature": args.temperature}
    if args.resume_from:
        state, synthetic = other_start(args.resume_from, args.sim_type, args.alpha)
        require_fits(synthetic, task, args.resume_from)
        flags = {key: getattr(args, key) for key in ("num_queries", "sim_type", "sim_rank", "alpha")}
        require_same_set(synthetic, meta | flags, args.resume_from)
        return state, synthetic
    return None, _first_set(args, task, meta, generator(args.seed, "distill"))


def _first_set(args, task, meta, generator):
    """The synthetic set that a run begins with; S = I where an expert is to say what S is."""
    kind = "identity" if args.sim_type == "expert" else args.sim_type
    if args.init_indices:
        pairs = initial_pairs(args.init_indices, task, args.num_queries)
    else:
        pairs = select("random", task, args.num_queries, generator)
    similarity = build_similarity(
        kind, args.num_queries, rank=args.sim_rank, alpha=args.alpha, generator=generator
    )
    return initial_set(
        task,
        pairs,
        similarity,
        pix_init=args.pix_init,
        txt_init=args.txt_init,
        lrs=(args.lr_teacher_img, args.lr_teacher_txt),
        generator=generator,
        meta=meta,
    )


def open_experts(args, wanted, model):
    """The trajectories of --buffer_path, checked against what this run needs of them, as is the model."""
    folder = experts_folder(args)
    require_no_running_statistics(model)
    require_same_experts(folder, wanted)
    experts = ExpertTrajectories(folder)
    experts.require_fits(model, args.max_start_epoch - 1, args.expert_epochs)
    return experts


def experts_similarity(model, experts, synthetic):
    """The fixed S of --sim_type expert, by the first expert's last snapshot."""
    return FixedSimilarity(expert_similarity(model, experts.last(0), synthetic))


def open_objective(args, run, task, model, experts):
    """Trajectory matching as the flags describe it."""
    make_matcher = partial(
        Matcher,
        model,
        LOSSES[args.loss_type],
        gradient=args.gradient,
        merge_towers=args.merge_loss_branches,
        temperature=args.temperature,
        path_device=args.path_device,
        world=run.world,
    )
    return TrajectoryMatching(
        make_matcher(second_order=args.second_order, precision=args.precision, compile=args.compile),
        experts,
        syn_steps=args.syn_steps,
        mini_batch_size=args.mini_batch_size,
        minibatches=_minibatches(args, run),
        expert_epochs=args.expert_epochs,
        max_start_epoch=args.max_start_epoch,
        checker=make_matcher(second_order="forward") if args.check_gradient else None,
        check_every=args.check_gradient,
    )


def _minibatches(args, run):
    """Those of the flag; a run that was begun before there was one goes on as it began."""
    return run.state["arguments"].get("minibatches", "independent") if run.state else args.minibatches


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

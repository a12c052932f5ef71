"""The objectives of --objective, as the flags describe them: what fills `.grad` of the set."""

from functools import partial

from distill_utils.distribution.covmatch import CovarianceMatching
from distill_utils.distribution.mdm import ModalityMatching
from distill_utils.experts.folder import experts_folder, require_same_experts
from distill_utils.experts.shortcut import ShortcutTrajectories
from distill_utils.experts.starts import open_starts
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.matching.checks import require_no_running_statistics
from distill_utils.matching.gradient import Matcher
from distill_utils.matching.objective import TrajectoryMatching
from distill_utils.task.from_flags import made_with
from distill_utils.training.losses import LOSSES


def open_trajectories(args, wanted):
    """The trajectories of --buffer_path, or the straight lines in their stead; UserError unless they were
    made with what is `wanted`.
    """
    folder = experts_folder(args)
    require_same_experts(folder, wanted)
    return ShortcutTrajectories(folder, args.shortcut) if args.shortcut else ExpertTrajectories(folder)


def open_experts(args, wanted, model):
    """The trajectories of --buffer_path and the Starts on them, checked against what this run needs of them,
    as is the model.
    """
    require_no_running_statistics(model)
    experts = open_trajectories(args, wanted)
    epochs = args.min_start_epoch, args.max_start_epoch, args.expert_epochs
    starts = open_starts(args.start_epochs, experts, *epochs)
    experts.require_fits(model, starts.last(), args.expert_epochs)
    return experts, starts


def open_trajectory_matching(args, run, task, make_model):
    """Trajectory matching (MTT, TESLA, LoRS) as the flags describe it."""
    model = make_model().to(run.device).train()
    experts, starts = open_experts(args, made_with(args, task), model)
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
        starts=starts,
        blend=args.blend,
        checker=make_matcher(second_order="forward") if args.check_gradient else None,
        check_every=args.check_gradient,
    )


def _minibatches(args, run):
    """Those of the flag; a run that was begun before there was one goes on as it began."""
    return run.state["arguments"].get("minibatches", "independent") if run.state else args.minibatches


def open_modality_matching(args, run, task, make_model):
    """MDM as the flags describe it."""
    model = make_model().to(run.device)
    experts = open_trajectories(args, made_with(args, task))
    experts.require_fits(model, 0, 1)
    return ModalityMatching(
        model,
        experts,
        partial(task.real_batch, device=run.device),
        world=run.world,
        batch_size=args.real_batch,
        weight=args.distribution_weight,
        sigma=args.kernel_sigma,
        temperature=args.temperature,
        loss_fn=LOSSES[args.loss_type],
    )


def open_covariance_matching(args, run, task, make_model):
    """CovMatch as the flags describe it."""
    return CovarianceMatching(
        make_model,
        partial(task.real_batch, device=run.device),
        world=run.world,
        batch_size=args.real_batch,
        rho=args.covariance_rho,
        weight=args.distribution_weight,
        reset=args.reset_it,
        lrs=(args.lr_teacher_img, args.lr_teacher_txt),
        temperature=args.temperature,
    )


# Each is called with (args, run, task, make_model), and gives an objective: see docs/development.md.
OBJECTIVES = {
    "trajectory": open_trajectory_matching,
    "mdm": open_modality_matching,
    "covmatch": open_covariance_matching,
}

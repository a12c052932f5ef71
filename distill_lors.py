"""Distil a data set into a few learned pairs: `python distill_lors.py --dataset flickr --num_queries 99` (experts first: buffer.py)."""

import sys
import time
from functools import partial

import torch
from tqdm import tqdm

from distill_utils import config
from distill_utils.coreset import real_set
from distill_utils.errors import UserError
from distill_utils.evaluate import METRICS, evaluate_synthetic_set, require_fits
from distill_utils.files import write_json
from distill_utils.flags import experts_folder, made_with, model_maker, open_task
from distill_utils.losses import LOSSES
from distill_utils.matching import Matcher, gradient_agreement, require_combination, require_no_running_statistics
from distill_utils.report import nearest_captions
from distill_utils.run import Run, derive_seed, generator, run_program
from distill_utils.similarity import build_similarity
from distill_utils.synthetic import SyntheticSet
from distill_utils.trajectory import ExpertTrajectories, require_same_experts


def initial_set(task, n, similarity, *, pix_init, txt_init, lrs, meta, generator):
    """n random real pairs, or standard normal noise in place of their images or texts; noise texts have no source caption."""
    synthetic = real_set(task, task.sample_pairs(n, generator), meta, similarity, lr_img=lrs[0], lr_txt=lrs[1])
    with torch.no_grad():
        if pix_init == "noise":
            synthetic.images.normal_(generator=generator)
        if txt_init == "noise":
            synthetic.texts.normal_(generator=generator)
            synthetic.meta["source_captions"] = [None] * n
    return synthetic


def outer_optimizer(synthetic, *, lr_img, lr_txt, lr_lr, lr_sim, momentum_syn, momentum_lr, momentum_sim):
    """One SGD with a group each for the images, the texts, the two learned learning rates and the similarity."""
    groups = [
        {"params": [synthetic.images], "lr": lr_img, "momentum": momentum_syn},
        {"params": [synthetic.texts], "lr": lr_txt, "momentum": momentum_syn},
        {"params": [synthetic.lr_img, synthetic.lr_txt], "lr": lr_lr, "momentum": momentum_lr},
        {"params": list(synthetic.similarity.parameters()), "lr": lr_sim, "momentum": momentum_sim},
    ]
    return torch.optim.SGD([group for group in groups if group["params"]])


def draw_minibatches(n, size, steps, generator, device):
    """The ids of each inner step's pairs: distinct within a step, drawn anew every step."""
    return [torch.randperm(n, generator=generator)[:size].to(device) for _ in range(steps)]


def gradient_by(matcher, synthetic, *step):
    """{parameter: gradient} of one outer step by `matcher`."""
    matcher(synthetic, *step)
    return {name: parameter.grad for name, parameter in synthetic.named_parameters()}


def compare_gradients(synthetic, exact):
    """{"Gradient/cosine_<parameter>", "Gradient/error_<parameter>"}: how `.grad` agrees with the exact one; error relative to its norm."""
    values = {}
    for name, parameter in synthetic.named_parameters():
        agreement = gradient_agreement(parameter.grad, exact[name])
        values |= {f"Gradient/{what}_{name}": number for what, number in agreement.items()}
    return values


def require_finite(synthetic, step, source):
    bad = [name for name, parameter in synthetic.named_parameters() if not torch.isfinite(parameter.grad).all()]
    if bad:
        raise UserError(
            f"Outer step {step}: the gradient of {', '.join(bad)} is not finite ({source}; learned learning rates "
            f"{synthetic.lr_img.item():.3g}, {synthetic.lr_txt.item():.3g}). Lower --lr_img, --lr_txt, --lr_sim or --lr_lr; "
            "the sets saved so far are whole."
        )


def distill(
    synthetic,
    matcher,
    experts,
    optimizer,
    *,
    steps,
    syn_steps,
    mini_batch_size,
    expert_epochs,
    max_start_epoch,
    clamp_lr,
    generator,
    first_step=0,
    checker=None,
    check_every=0,
):
    """The outer loop: yields (step, {name: number}) after every outer step, and (first_step, {}) before the first.

    Every `check_every` steps the gradient is also taken by `checker`, an exact Matcher, and how the two agree is among the numbers.
    """
    yield first_step, {}
    device, pair = synthetic.images.device, None
    for step in range(first_step + 1, steps + 1):
        began = time.perf_counter()
        expert, epoch = experts.draw(max_start_epoch, generator)
        start, target = pair = experts.pair(expert, epoch, expert_epochs, out=pair)
        minibatches = draw_minibatches(len(synthetic), mini_batch_size, syn_steps, generator, device)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        checking = check_every and step % check_every == 0
        exact = gradient_by(checker, synthetic, start, target, minibatches, seed) if checking else None
        loss = matcher(synthetic, start, target, minibatches, seed)
        agreement = compare_gradients(synthetic, exact) if checking else {}
        require_finite(synthetic, step, f"expert {expert}, start epoch {epoch}")
        optimizer.step()
        with torch.no_grad():
            for lr in (synthetic.lr_img, synthetic.lr_txt):
                lr.clamp_(min=clamp_lr)
        yield (
            step,
            {
                "Loss/grand": float(loss.grand),
                "Loss/img_grand": float(loss.img),
                "Loss/txt_grand": float(loss.txt),
                "Synthetic_LR/Image": synthetic.lr_img.item(),
                "Synthetic_LR/Text": synthetic.lr_txt.item(),
                "seconds": round(time.perf_counter() - began, 4),
            }
            | agreement,
        )


def evaluation_log(result):
    """The reference's keys: Mean/ and Std/ of the headline protocol; the others under their own names."""
    values = {f"{name}/{key}": result[key][stat] for key in METRICS for name, stat in (("Mean", "mean"), ("Std", "std"))}
    others = {f"{protocol.title()}/r_mean": result["protocols"][protocol]["r_mean"]["mean"] for protocol in ("last", "best")}
    return values | others | {"Val/r_mean": result["val_r_mean"]["mean"], "Loss/train_loss": result["students"][-1]["curve"][-1]["train_loss"]}


def save_and_evaluate(run, synthetic, step, evaluations, evaluate):
    """Write distilled_{step}.pt and its evaluation; updates `evaluations` {step: result} and returns (log values, step best on val)."""
    synthetic.meta["step"] = step
    synthetic.save(run.directory / f"distilled_{step}.pt")
    result = evaluations[step] = evaluate(synthetic)
    selected = max(evaluations, key=lambda s: evaluations[s]["val_r_mean"]["mean"])
    run.update_results({"selected_step": selected, "evaluations": [{"step": s} | r for s, r in evaluations.items()]})
    tqdm.write(
        f"step {step}: r_mean {result['val_r_mean']['mean']:.1f} on val, {result['r_mean']['mean']:.1f} ± {result['r_mean']['std']:.1f} on test; "
        f"learned lrs {synthetic.lr_img.item():.3f}, {synthetic.lr_txt.item():.3f}"
    )
    return evaluation_log(result), selected


def open_experts(args, folder, wanted, model):
    """The trajectories in `folder`, checked against what this run needs of them, as is the model."""
    require_no_running_statistics(model)
    require_same_experts(folder, wanted)
    experts = ExpertTrajectories(folder)
    experts.require_fits(model, args.max_start_epoch - 1, args.expert_epochs)
    return experts


def first_set(args, task, meta, generator):
    """The synthetic set that the run starts from."""
    if args.resume_from:
        synthetic = SyntheticSet.load(args.resume_from)
        require_fits(synthetic, task, args.resume_from)
        return synthetic
    similarity = build_similarity(args.sim_type, args.num_queries, rank=args.sim_rank, alpha=args.alpha, generator=generator)
    return initial_set(
        task,
        args.num_queries,
        similarity,
        pix_init=args.pix_init,
        txt_init=args.txt_init,
        lrs=(args.lr_teacher_img, args.lr_teacher_txt),
        generator=generator,
        meta=meta | {"loss": args.loss_type, "temperature": args.temperature},
    )


def main(argv=None):
    args = config.parse(config.distill_parser(__doc__), argv)
    if args.mini_batch_size > args.num_queries:
        raise UserError(f"--mini_batch_size {args.mini_batch_size} is more than the --num_queries {args.num_queries} pairs there are.")
    require_combination(args.second_order, precision=args.precision, compile=args.compile, grad_checkpointing=args.grad_checkpointing)
    if args.check_gradient and args.grad_checkpointing:
        raise UserError("--check_gradient takes the exact gradient by --second_order forward, which does not go with --grad_checkpointing.")
    run = Run(args, "distill", default_name=f"lors_{args.num_queries}")
    task = open_task(args, run.device)
    make_model, wanted = model_maker(args, task), made_with(args, task)
    random_numbers = generator(args.seed, "distill")
    synthetic = first_set(args, task, wanted, random_numbers).to(run.device)
    model = make_model().to(run.device).train()
    folder = experts_folder(args)
    experts = open_experts(args, folder, wanted, model)
    optimizer = outer_optimizer(
        synthetic,
        lr_img=args.lr_img,
        lr_txt=args.lr_txt,
        lr_lr=args.lr_lr,
        lr_sim=args.lr_sim,
        momentum_syn=args.momentum_syn,
        momentum_lr=args.momentum_lr,
        momentum_sim=args.momentum_sim,
    )
    make_matcher = partial(
        Matcher,
        model,
        LOSSES[args.loss_type],
        gradient=args.gradient,
        merge_towers=args.merge_loss_branches,
        temperature=args.temperature,
        path_device=args.path_device,
    )
    matcher = make_matcher(second_order=args.second_order, precision=args.precision, compile=args.compile)
    checker = make_matcher(second_order="forward") if args.check_gradient else None
    evaluate = partial(
        evaluate_synthetic_set,
        task=task,
        make_model=make_model,
        num_eval=args.num_eval,
        epochs=args.epoch_eval_train,
        batch_size=args.batch_eval,
        loss_type=args.loss_type,
        temperature=args.temperature,
        seed=derive_seed(args.seed, "during"),
        device=run.device,
        precision=args.precision,
    )

    first_step = synthetic.meta.get("step", 0)
    outer_steps = distill(
        synthetic,
        matcher,
        experts,
        optimizer,
        steps=args.Iteration,
        syn_steps=args.syn_steps,
        mini_batch_size=args.mini_batch_size,
        expert_epochs=args.expert_epochs,
        max_start_epoch=args.max_start_epoch,
        clamp_lr=args.clamp_lr,
        generator=random_numbers,
        first_step=first_step,
        checker=checker,
        check_every=args.check_gradient,
    )
    evaluations = {}
    bar = tqdm(outer_steps, total=args.Iteration - first_step + 1, desc="outer steps")
    for step, values in bar:
        if "Loss/grand" in values:
            bar.set_postfix(loss=f"{values['Loss/grand']:.3f}", r_mean=f"{evaluations[max(evaluations)]['r_mean']['mean']:.1f}")
        if step % args.eval_it == 0 or step in (first_step, args.Iteration):
            measured, selected = save_and_evaluate(run, synthetic, step, evaluations, evaluate)
            values = values | measured
        run.log(step, values)

    best = SyntheticSet.load(run.directory / f"distilled_{selected}.pt")
    write_json(run.directory / "nearest.json", {"captions": nearest_captions(best.texts.detach(), task.train_texts, task.train.captions)})
    run.finish()
    print(f"{len(synthetic)} pairs in {run.directory}; best on val: distilled_{selected}.pt")
    return run.directory


if __name__ == "__main__":
    sys.exit(run_program(main))

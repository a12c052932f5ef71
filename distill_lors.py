"""Distil a data set into a few learned pairs: `python distill_lors.py --dataset flickr --num_queries 99` (experts first: buffer.py)."""

import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from distill_utils import config
from distill_utils.coreset import real_set, select
from distill_utils.errors import Diverged, UserError
from distill_utils.evaluate import METRICS, evaluate_synthetic_set, format_table, require_fits, selected_evaluation, summarise_runs
from distill_utils.files import load_tensors, read_indices, read_json, write_json
from distill_utils.flags import experts_folder, made_with, model_maker, open_task
from distill_utils.losses import LOSSES
from distill_utils.matching import Matcher, gradient_agreement, require_combination, require_no_running_statistics
from distill_utils.memory import peak_mb
from distill_utils.parallel import is_first
from distill_utils.report import nearest_captions
from distill_utils.run import Run, derive_seed, generator, run_program, undisturbed
from distill_utils.similarity import FixedSimilarity, build_similarity
from distill_utils.synthetic import SyntheticSet
from distill_utils.trajectory import ExpertTrajectories, load_flat, require_same_experts

_MAX_RESTORES = 3  # returns to a good set, with ever smaller steps, before a run gives up


def initial_set(task, pairs, similarity, *, pix_init, txt_init, lrs, meta, generator):
    """The real train pairs `pairs`, or standard normal noise in place of their images or texts; noise texts have no source caption."""
    synthetic = real_set(task, pairs, meta, similarity, lr_img=lrs[0], lr_txt=lrs[1])
    with torch.no_grad():
        if pix_init == "noise":
            synthetic.images.normal_(generator=generator)
        if txt_init == "noise":
            synthetic.texts.normal_(generator=generator)
            synthetic.meta["source_captions"] = [None] * len(pairs)
    return synthetic


def outer_optimizer(synthetic, *, lr_img, lr_txt, lr_lr, lr_sim, momentum_syn, momentum_lr, momentum_sim, learn=config.LEARNABLE):
    """One SGD with a group each for the images, the texts, the two learned learning rates and the similarity, or those to `learn`."""
    groups = {
        "images": {"params": [synthetic.images], "lr": lr_img, "momentum": momentum_syn},
        "texts": {"params": [synthetic.texts], "lr": lr_txt, "momentum": momentum_syn},
        "lrs": {"params": [synthetic.lr_img, synthetic.lr_txt], "lr": lr_lr, "momentum": momentum_lr},
        "similarity": {"params": list(synthetic.similarity.parameters()), "lr": lr_sim, "momentum": momentum_sim},
    }
    groups = [group for name, group in groups.items() if name in learn and group["params"]]
    if not groups:
        raise UserError(f"--learn {','.join(learn)} leaves nothing to learn: this set's similarity has no parameters.")
    return torch.optim.SGD(groups)


def draw_minibatches(n, size, steps, generator, device):
    """The ids of each inner step's pairs: distinct within a step, drawn anew every step."""
    return [torch.randperm(n, generator=generator)[:size].to(device) for _ in range(steps)]


def compare_gradients(synthetic, exact):
    """{"Gradient/cosine_<parameter>", "Gradient/error_<parameter>"}: how `.grad` agrees with the exact one; error relative to its norm."""
    values = {}
    for name, parameter in synthetic.named_parameters():
        agreement = gradient_agreement(parameter.grad, exact[name])
        values |= {f"Gradient/{what}_{name}": number for what, number in agreement.items()}
    return values


class Distillation:
    """The outer loop, one `advance` after another, and all that it changes; between two calls, and inside one, it can be saved.

    Outer step k draws from a generator of its own, made from the seed and k: no state of random numbers has to be kept.
    step: outer steps done, from first_step on. unlogged: {name: number} of that step while no one has logged it, else None.
    """

    def __init__(
        self,
        synthetic,
        matcher,
        experts,
        optimizer,
        *,
        syn_steps,
        mini_batch_size,
        expert_epochs,
        max_start_epoch,
        clamp_lr,
        max_lr=float("inf"),
        max_bad_steps=5,
        last_good=None,
        seed=0,
        checker=None,
        check_every=0,
    ):
        """last_good() -> SyntheticSet to go back to after `max_bad_steps` steps in a row without a finite gradient.

        checker: an exact Matcher; every `check_every` steps how its gradient agrees with the one used is among the numbers.
        """
        self.synthetic, self.matcher, self.experts, self.optimizer = synthetic, matcher, experts, optimizer
        self.syn_steps, self.mini_batch_size = syn_steps, mini_batch_size
        self.expert_epochs, self.max_start_epoch = expert_epochs, max_start_epoch
        self.clamp_lr, self.max_lr = clamp_lr, max_lr
        self.max_bad_steps, self.last_good = max_bad_steps, last_good
        self.seed, self.checker, self.check_every = seed, checker, check_every
        self.step = self.first_step = synthetic.meta.get("step", 0)
        self.unlogged = {}
        self.bad_steps, self.restores = 0, 0
        self._pair = None

    def state(self):
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "first_step": self.first_step,
            "unlogged": self.unlogged,
            "set": self.synthetic.saved(),
            "momentum": [self.optimizer.state[parameter].get("momentum_buffer") for parameter in self._parameters()],
            "length": self.matcher.length,
            "bad_steps": self.bad_steps,
            "restores": self.restores,
        }

    def load_state(self, state, source):
        """Go on from a `state`, whose synthetic set is already this one; UserError, naming `source`, if it does not fit."""
        momentum, length = state.get("momentum"), state.get("length")
        parameters = self._parameters()
        fits = isinstance(momentum, list) and len(momentum) == len(parameters)
        for value, parameter in zip(momentum if fits else (), parameters):
            fits &= value is None or isinstance(value, torch.Tensor) and value.shape == parameter.shape
        fits &= all(isinstance(state.get(key), int) for key in ("step", "first_step", "bad_steps", "restores"))
        fits &= isinstance(state.get("unlogged"), (dict, type(None))) and (length is None or isinstance(length, torch.Tensor) and length.dim() == 0)
        if not fits:
            raise UserError(f"{source} is not the state of a run like this one: its set, its optimiser and these flags do not belong together.")
        self.step, self.first_step, self.unlogged = state["step"], state["first_step"], state["unlogged"]
        self.bad_steps, self.restores = state["bad_steps"], state["restores"]
        for value, parameter in zip(momentum, parameters):
            if value is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = value.to(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5**self.restores
        self.matcher.length = length

    def _parameters(self):
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def advance(self):
        """One outer step; its numbers are in `unlogged` when it is done."""
        began = time.perf_counter()
        step, synthetic = self.step + 1, self.synthetic
        numbers = generator(self.seed, "step", step)
        expert, epoch = self.experts.draw(self.max_start_epoch, numbers)
        start, target = self._pair = self.experts.pair(expert, epoch, self.expert_epochs, out=self._pair)
        minibatches = draw_minibatches(len(synthetic), self.mini_batch_size, self.syn_steps, numbers, synthetic.images.device)
        inner_loop = synthetic, start, target, minibatches, int(torch.randint(1 << 62, (), generator=numbers))
        exact = None
        if self.check_every and step % self.check_every == 0:
            self.checker(*inner_loop)
            exact = {name: parameter.grad for name, parameter in synthetic.named_parameters()}
        loss = self.matcher(*inner_loop)
        bad = [name for name, parameter in synthetic.named_parameters() if not torch.isfinite(parameter.grad).all()]
        values = {} if bad or not exact else compare_gradients(synthetic, exact)
        with undisturbed():
            if bad:
                values |= self._skip(f"outer step {step}, expert {expert}, start epoch {epoch}: the gradient of {', '.join(bad)} is not finite")
                values |= {"Guard/expert": expert, "Guard/epoch": epoch}
            else:
                self.bad_steps = 0
                self.optimizer.step()
                with torch.no_grad():
                    for lr in (synthetic.lr_img, synthetic.lr_txt):
                        lr.clamp_(self.clamp_lr, self.max_lr)
                values |= {"Loss/grand": float(loss.grand), "Loss/img_grand": float(loss.img), "Loss/txt_grand": float(loss.txt)}
            values |= {"Synthetic_LR/Image": synthetic.lr_img.item(), "Synthetic_LR/Text": synthetic.lr_txt.item()}
            values |= {"seconds": round(time.perf_counter() - began, 4), "memory_mb": round(peak_mb(synthetic.images.device) or 0)}
            self.step, self.unlogged = step, values

    def _skip(self, reason):
        """Leave the set as it is; after too many times, go back to the last good one with half the step sizes."""
        self.bad_steps += 1
        values = {"Guard/bad_steps": self.bad_steps}
        if self.bad_steps < self.max_bad_steps:
            tqdm.write(f"{reason}; the step is skipped")
            return values
        if self.restores == _MAX_RESTORES or self.last_good is None:
            raise UserError(
                f"{reason}, {self.bad_steps} times in a row and after {self.restores} restarts from a good set: "
                "lower --lr_img, --lr_txt, --lr_sim or --lr_lr. All that was saved is whole."
            )
        good = self.last_good()
        with torch.no_grad():
            for parameter, value in zip(self.synthetic.parameters(), good.parameters()):
                parameter.copy_(value)
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        self.bad_steps, self.restores = 0, self.restores + 1
        tqdm.write(f"{reason}; the set of step {good.meta['step']} is restored and all step sizes are halved")
        return values | {"Guard/restored_step": good.meta["step"], "Guard/step_sizes": 0.5**self.restores}


def evaluation_log(result):
    """The reference's keys: Mean/ and Std/ of the headline protocol; the others under their own names."""
    values = {f"{name}/{key}": result[key][stat] for key in METRICS for name, stat in (("Mean", "mean"), ("Std", "std"))}
    others = {f"{protocol.title()}/r_mean": result["protocols"][protocol]["r_mean"]["mean"] for protocol in ("last", "best")}
    return values | others | {"Val/r_mean": result["val_r_mean"]["mean"], "Loss/train_loss": result["students"][-1]["curve"][-1]["train_loss"]}


def save_and_evaluate(run, synthetic, step, evaluations, evaluate):
    """Write distilled_{step}.pt and its evaluation; updates `evaluations` {step: result} and returns the values to log.

    A set whose students diverge has no result, and is never selected.
    """
    synthetic.meta["step"] = step
    if run.world.first:
        synthetic.save(run.directory / f"distilled_{step}.pt")
    try:
        result = evaluate(synthetic)
    except Diverged as error:
        if not evaluations:
            raise
        tqdm.write(f"step {step}: the students diverged, so that this set has no result ({error})")
        return {"Guard/students_diverged": 1}
    evaluations[step] = result
    run.update_results({"selected_step": selected_step(evaluations), "evaluations": [{"step": s} | r for s, r in sorted(evaluations.items())]})
    if run.world.first:
        tqdm.write(
            f"step {step}: r_mean {result['val_r_mean']['mean']:.1f} on val, {result['r_mean']['mean']:.1f} ± {result['r_mean']['std']:.1f} on test; "
            f"learned lrs {synthetic.lr_img.item():.3f}, {synthetic.lr_txt.item():.3f}"
        )
    return evaluation_log(result)


def selected_step(evaluations):
    """The earliest of the outer steps that are best on val."""
    return max(sorted(evaluations), key=lambda step: evaluations[step]["val_r_mean"]["mean"])


def open_experts(args, folder, wanted, model):
    """The trajectories in `folder`, checked against what this run needs of them, as is the model."""
    require_no_running_statistics(model)
    require_same_experts(folder, wanted)
    experts = ExpertTrajectories(folder)
    experts.require_fits(model, args.max_start_epoch - 1, args.expert_epochs)
    return experts


def other_start(path):
    """(state or None, SyntheticSet) that --resume_from names: a run's folder, its state.pt, or a distilled_*.pt.

    The state begins a new run here: it is evaluated first, and step sizes are those of the flags.
    """
    path = Path(path)
    path = path / "state.pt" if path.is_dir() else path
    saved = load_tensors(path)
    if not isinstance(saved, dict) or "momentum" not in saved:
        return None, SyntheticSet.from_saved(saved, path)
    begun_here = {"first_step": saved.get("step"), "unlogged": {}, "restores": 0, "evaluations": {}}
    return saved | begun_here, SyntheticSet.from_saved(saved.get("set"), path)


@torch.no_grad()
def expert_similarity(model, weights, synthetic):
    """S [N, N] by an expert's `weights`: cosines of image i and text j over those of the pairs themselves, between 0 and 1.

    The ablation of the paper in which the similarity is computed instead of learned; 1 on the diagonal.
    """
    images, texts = load_flat(model, weights).eval()(synthetic.images, synthetic.texts)
    cosines = images @ texts.T
    own = cosines.diagonal().clamp(min=1e-3)
    return (cosines / (own[:, None] * own[None, :]).sqrt()).clamp(0, 1).fill_diagonal_(1)


def initial_pairs(path, task, n):
    """The first n of the train pairs that a file names, as a coreset's indices.npy does, in its order."""
    pairs = task.positions(read_indices(path), path)
    if len(pairs) < n:
        raise UserError(f"--init_indices {path} names {len(pairs)} pairs, fewer than --num_queries {n}.")
    return pairs[:n]


def first_set(args, task, meta, generator):
    """The synthetic set that a run begins with; S = I where an expert is to say what S is."""
    kind = "identity" if args.sim_type == "expert" else args.sim_type
    if args.init_indices:
        pairs = initial_pairs(args.init_indices, task, args.num_queries)
    else:
        pairs = select("random", task, args.num_queries, generator)
    similarity = build_similarity(kind, args.num_queries, rank=args.sim_rank, alpha=args.alpha, generator=generator)
    return initial_set(
        task,
        pairs,
        similarity,
        pix_init=args.pix_init,
        txt_init=args.txt_init,
        lrs=(args.lr_teacher_img, args.lr_teacher_txt),
        generator=generator,
        meta=meta | {"loss": args.loss_type, "temperature": args.temperature},
    )


def require_flags_that_combine(args):
    if args.mini_batch_size > args.num_queries:
        raise UserError(f"--mini_batch_size {args.mini_batch_size} is more than the --num_queries {args.num_queries} pairs there are.")
    require_combination(args.second_order, precision=args.precision, compile=args.compile, grad_checkpointing=args.grad_checkpointing)
    if args.check_gradient and args.grad_checkpointing:
        raise UserError("--check_gradient takes the exact gradient by --second_order forward, which does not go with --grad_checkpointing.")
    if args.max_lr < args.clamp_lr:
        raise UserError(f"--max_lr {args.max_lr} is below --clamp_lr {args.clamp_lr}.")


def outer_loop(args, run, outer, evaluations, evaluate, panels):
    """Advance, evaluate, log and save until the last outer step; whatever ends it, what was computed is saved.

    panels(synthetic) -> (images, sentences) for wandb, after an evaluation.
    """

    def save():
        run.save_state(outer.state() | {"evaluations": evaluations}, logged=outer.step - (outer.unlogged is not None))

    bar = tqdm(total=args.Iteration, initial=outer.step, desc="outer steps", disable=not run.world.first)
    try:
        while True:
            if outer.unlogged is not None:
                step, values = outer.step, outer.unlogged
                evaluating = step % args.eval_it == 0 or step in (outer.first_step, args.Iteration)
                if evaluating:
                    values = values | save_and_evaluate(run, outer.synthetic, step, evaluations, evaluate)
                best = evaluations[selected_step(evaluations)]["r_mean"]["mean"] if evaluations else float("nan")
                loss, memory = values.get("Loss/grand", float("nan")), values.get("memory_mb", 0) / 1024
                bar.set_postfix_str(f"loss {loss:.3f}, best r_mean {best:.1f}, {memory:.1f} GiB")
                with undisturbed():
                    run.log(step, values)
                    if evaluating:
                        run.log_panels(step, partial(panels, outer.synthetic))
                    outer.unlogged = None
                    if evaluating or step % args.save_it == 0:
                        save()
            if outer.step >= args.Iteration:
                break
            outer.advance()
            bar.update()
    except BaseException:
        with undisturbed(), suppress(UserError):  # such as a full disk, which may be the very reason
            save()
        raise
    finally:
        bar.close()


def image_and_sentence(synthetic, task, most=50):
    """Of the first pairs: pixels [n, 3, H, W] in [0, 1], and of the learned texts the nearest real captions."""
    nearest = nearest_captions(synthetic.texts.detach()[:most], task.train_texts, task.train.captions, k=1)
    return synthetic.pixels()[:most], [captions[0]["caption"] for captions in nearest]


def distill_seeds(args, argv):
    """--num_seeds distillations one after another; prints their selected sets' recall and its mean over them, and returns the folders."""
    name = args.name or _default_name(args)
    seeds = range(args.seed, args.seed + args.num_seeds)
    folders = [main([*argv, "--num_seeds", "1", "--seed", str(seed), "--name", f"{name}_seed{seed}"]) for seed in seeds]
    rows = {}
    for seed, folder in zip(seeds, folders):
        rows[f"seed {seed}"] = selected_evaluation(read_json(folder / "results.json"))
    if is_first():
        print(f"test recall in %, outer step and epoch chosen on val; the last row is over the {len(rows)} distillations")
        print(format_table(rows | {"all": summarise_runs(list(rows.values()))}))
    return folders


def _default_name(args):
    return f"lors_{args.num_queries}"


def open_set(args, run, task, wanted):
    """(state or None, SyntheticSet): what this run, or the one of --resume_from, left; else the set to begin with."""
    if run.state:
        return run.state, SyntheticSet.from_saved(run.state.get("set"), run.directory / "state.pt")
    if args.resume_from:
        state, synthetic = other_start(args.resume_from)
        require_fits(synthetic, task, args.resume_from)
        return state, synthetic
    return None, first_set(args, task, wanted, generator(args.seed, "distill"))


def build_outer_loop(args, run, synthetic, model, experts, evaluations):
    """The Distillation that the flags describe."""
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
    return Distillation(
        synthetic,
        make_matcher(second_order=args.second_order, precision=args.precision, compile=args.compile),
        experts,
        optimizer,
        syn_steps=args.syn_steps,
        mini_batch_size=args.mini_batch_size,
        expert_epochs=args.expert_epochs,
        max_start_epoch=args.max_start_epoch,
        clamp_lr=args.clamp_lr,
        max_lr=args.max_lr,
        max_bad_steps=args.max_bad_steps,
        last_good=lambda: SyntheticSet.load(run.directory / f"distilled_{max(evaluations)}.pt"),
        seed=args.seed,
        checker=make_matcher(second_order="forward") if args.check_gradient else None,
        check_every=args.check_gradient,
    )


def say_what_came_out(run, task, evaluations):
    """nearest.json of the set that was best on val, and where it is."""
    selected = selected_step(evaluations)
    best = SyntheticSet.load(run.directory / f"distilled_{selected}.pt")
    captions = nearest_captions(best.texts.detach(), task.train_texts, task.train.captions)
    write_json(run.directory / "nearest.json", {"step": selected, "captions": captions})
    print(f"{len(best)} pairs in {run.directory}; best on val: distilled_{selected}.pt")


def main(argv=None):
    args = config.parse(config.distill_parser(__doc__), argv)
    require_flags_that_combine(args)
    if args.num_seeds > 1:
        return distill_seeds(args, argv)
    run = Run(args, "distill", default_name=_default_name(args), resume=args.resume == "auto", divided=True)
    if run.state and run.state["step"] >= args.Iteration and run.state.get("unlogged") is None:
        print(f"{run.directory} already has its {run.state['step']} outer steps: --Iteration for more, --fresh to begin anew.")
        return run.directory
    task = open_task(args, run.device)
    make_model, wanted = model_maker(args, task, run.device), made_with(args, task)
    state, synthetic = open_set(args, run, task, wanted)
    synthetic = synthetic.to(run.device)
    model = make_model().to(run.device).train()
    experts = open_experts(args, experts_folder(args), wanted, model)
    if args.sim_type == "expert" and not state:
        synthetic.similarity = FixedSimilarity(expert_similarity(make_model().to(run.device), experts.last(0), synthetic))
    evaluations = state.get("evaluations", {}) if state else {}
    outer = build_outer_loop(args, run, synthetic, model, experts, evaluations)
    if state:
        outer.load_state(state, args.resume_from or run.directory / "state.pt")
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
        world=run.world,
    )
    outer_loop(args, run, outer, evaluations, evaluate, partial(image_and_sentence, task=task))
    if run.world.first:
        say_what_came_out(run, task, evaluations)
    run.finish()
    return run.directory


if __name__ == "__main__":
    sys.exit(run_program(main))

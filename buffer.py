"""Train experts on all real pairs and store their trajectories: `python buffer.py --dataset flickr --num_experts 20`.

Any number of these processes, on any hosts that share the folder, divide the experts among them; one that was stopped goes on
at its last epoch when it is started again, and what a dead one had begun is taken over.
"""

import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from distill_utils import config
from distill_utils.errors import Diverged, UserError
from distill_utils.evaluate import METRICS, choose_epochs, gallery_recall
from distill_utils.files import load_tensors, locked, read_json, save_tensors, write_json
from distill_utils.flags import experts_folder, made_with, model_maker, open_task
from distill_utils.losses import LOSSES
from distill_utils.run import Run, derive_seed, generator, run_program, undisturbed
from distill_utils.training import sgd, train_epoch
from distill_utils.trajectory import (
    Weights,
    describe_towers,
    expert_files,
    forgetting_file,
    read_meta,
    require_same_experts,
    snapshot,
    snapshot_bytes,
    tower_parameters,
    write_expert,
    write_meta,
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ATTEMPTS = 3  # seeds that an expert is tried with before its divergence is the user's to solve
_POLL = 2.0  # seconds between looks at what other processes are training


class Forgetting:
    """How often an expert got a pair wrong that it had right an epoch before (Toneva et al. 2019, for pairs).

    Right: in its batch, the pair's image and text are each other's best; of equals, all are. `events` and `learned`, whether it
    was ever right, are [P].
    """

    def __init__(self, pairs, device, saved=None):
        kinds = {"events": torch.int16, "learned": torch.bool, "right": torch.bool}
        self._state = {key: (saved[key] if saved else torch.zeros(pairs, dtype=kind)).to(device) for key, kind in kinds.items()}

    def __call__(self, logits, pairs):
        own, pairs = logits.diagonal(), pairs.to(logits.device)
        right = (own >= logits.amax(dim=0)) & (own >= logits.amax(dim=1))
        self._state["events"][pairs] += (self._state["right"][pairs] & ~right).short()
        self._state["learned"][pairs] |= right
        self._state["right"][pairs] = right

    def state(self):
        return {key: value.cpu() for key, value in self._state.items()}


class Progress:
    """What there is of an expert in training: a file per epoch, whole or absent, from which any process goes on."""

    def __init__(self, folder, n, keep):
        self.folder, self.keep = Path(folder) / f"partial_{n}", keep

    def _file(self, epoch):
        return self.folder / f"epoch_{epoch}.pt"

    def _epochs(self):
        """Those whose weights are saved, in order."""
        return sorted(int(file.stem.removeprefix("epoch_")) for file in self.folder.glob("epoch_*.pt"))

    def history(self):
        """{"epoch", "attempt", "lines" of the log, "curve"} after the last epoch, or None where none was saved."""
        epochs = self._epochs()
        return read_json(self._file(epochs[-1]).with_suffix(".json")) if epochs else None

    def weights(self, epoch):
        return load_tensors(self._file(epoch))

    def save(self, model, history, forgetting):
        """After an epoch: all that the next one depends on. Epochs that no one will read again are dropped."""
        epoch, weights = history["epoch"], snapshot(model)
        if not all(torch.isfinite(piece).all() for tower in weights for piece in tower):
            raise Diverged(f"A weight became infinite in epoch {epoch}.")
        write_json(self._file(epoch).with_suffix(".json"), history)
        buffers = {name: value.cpu() for name, value in model.named_buffers()}
        save_tensors(self._file(epoch), weights._asdict() | {"buffers": buffers, "forgetting": forgetting.state()})
        if epoch - 1 >= self.keep:
            self._file(epoch - 1).unlink(missing_ok=True)

    def snapshots(self):
        """The snapshots to keep, epochs 0 .. keep - 1."""
        return [Weights(saved["img"], saved["txt"]) for saved in map(self.weights, range(self.keep))]

    def clear(self):
        """Forget it all, from the last epoch down: what is left if this is cut short is an earlier state of the same expert."""
        for epoch in reversed(self._epochs()):
            self._file(epoch).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def load_weights(model, saved):
    """The model as it was when `saved` was saved."""
    with torch.no_grad():
        for tower, pieces in zip(tower_parameters(model), (saved["img"], saved["txt"])):
            for (_, parameter), piece in zip(tower, pieces):
                parameter.copy_(piece)
        for name, buffer in model.named_buffers():
            buffer.copy_(saved["buffers"][name])
    return model


def train_expert(
    make_model, task, progress, *, seed, epochs, batch_size, loss_fn, temperature, lr_img, lr_txt, eval_freq, device, precision, on_epoch, on_saved
):
    """Plain SGD on all real pairs, from where `progress` stands to the last epoch; the last `Progress.history` and `Forgetting.state`.

    Evaluated every `eval_freq` epochs and after the last; on_epoch(epoch, values) -> log line is told the loss and, then, the recall,
    and on_saved() is called when the epoch is on the disk.
    Every epoch has random numbers of its own. An expert that diverges begins anew under another seed; UserError after the third.
    """
    history = progress.history()
    for attempt in range(history["attempt"] if history else 0, _ATTEMPTS):
        torch.manual_seed(derive_seed(seed, "attempt", attempt))
        model = make_model().to(device)
        try:
            if history:
                saved = progress.weights(history["epoch"])
                load_weights(model, saved)
                forgetting = Forgetting(len(task.train), device, saved["forgetting"])
            else:
                history = {"epoch": 0, "attempt": attempt, "lines": [], "curve": []}
                forgetting = Forgetting(len(task.train), device)
                progress.save(model, history, forgetting)
            optimizer = sgd(model, lr_img, lr_txt)
            for epoch in range(history["epoch"] + 1, epochs + 1):
                torch.manual_seed(derive_seed(seed, "epoch", attempt, epoch))
                batches = task.train_batches(batch_size, generator(seed, "batches", attempt, epoch), device)
                bar = tqdm(batches, total=task.num_batches(batch_size), leave=False, desc=f"epoch {epoch}/{epochs}")
                values, points = {"Loss/train_loss": train_epoch(model, bar, optimizer, loss_fn, temperature, precision, forgetting)}, []
                if epoch % eval_freq == 0 or epoch == epochs:
                    points = [{"epoch": epoch} | {split: gallery_recall(model, gallery, device) for split, gallery in task.galleries.items()}]
                    values |= {f"Results/{key}": points[0]["test"][key] for key in METRICS} | {"Results/val_r_mean": points[0]["val"]["r_mean"]}
                with undisturbed():
                    lines = [*history["lines"], on_epoch(epoch, values)]
                    history = {"epoch": epoch, "attempt": attempt, "lines": lines, "curve": history["curve"] + points}
                    progress.save(model, history, forgetting)
                on_saved()
            return history, forgetting.state()
        except Diverged as error:
            tqdm.write(f"seed {attempt + 1} of {_ATTEMPTS} of this expert diverged: {error}")
            progress.clear()
            history, reason = None, error
    raise UserError(f"An expert diverged under {_ATTEMPTS} seeds: lower --lr_teacher_img and --lr_teacher_txt. {reason}")


def prepare_folder(folder, meta):
    """Write meta.yaml, or check that the experts already there are of the same kind."""
    with locked(folder / ".locks" / "meta"):
        existing = read_meta(folder)
        if not existing:
            write_meta(folder, meta)
            return
    require_same_experts(folder, meta)
    for key in ("train_epochs", "batch_train", "temperature", "lr_teacher_img", "lr_teacher_txt", "buffer_dtype", "keep_snapshots"):
        if existing.get(key, meta[key]) != meta[key]:
            raise UserError(f"The experts in {folder} have {key} {existing.get(key)}, not {meta[key]}: use another --buffer_path.")


def is_whole(folder, n):
    return all(path.exists() for path in expert_files(folder, n))


def stored_bytes(model, experts, keep, dtype, share_start):
    """The size on disk of `experts` experts of `keep` snapshots."""
    images, texts = snapshot_bytes(model, dtype)
    return experts * keep * (images + texts) - ((experts - 1) * images if share_start and experts else 0)


def require_space(folder, missing, model, keep, dtype, share_start):
    """Say how large the missing experts will be; UserError if the disk has not that much left."""
    if not missing:
        return
    size = stored_bytes(model, missing, keep, dtype, share_start)
    needed = size + (keep + 2) * sum(snapshot_bytes(model, torch.float32))  # the epochs of one expert in training
    free = shutil.disk_usage(folder).free
    print(f"{missing} experts of {keep} snapshots: {size / 2**30:.2f} GiB in {folder} ({free / 2**30:.1f} GiB free)")
    if needed > free:
        raise UserError(
            f"{missing} experts need {needed / 2**30:.2f} GiB while they train, but {folder} has {free / 2**30:.2f} GiB free: "
            "see --keep_snapshots, --buffer_dtype and --buffer_path."
        )


def report_epochs(run, n, num_experts, epochs):
    """on_epoch for expert n: returns a line of the log, and says it in words."""

    def on_epoch(epoch, values):
        line = run.log_line(n * epochs + epoch, {"expert": n, "epoch": epoch} | values)
        run.log_wandb(epoch, values)
        recall = f", test r_mean {values['Results/r_mean']:.1f}" if "Results/r_mean" in values else ""
        tqdm.write(f"expert {n + 1}/{num_experts}, epoch {epoch}/{epochs}: loss {values['Loss/train_loss']:.3f}{recall}")
        return line

    return on_epoch


def write_log(run, folder, num_experts):
    """log.jsonl: what is known of all experts, whoever trains them."""

    def lines():
        for n in range(num_experts):
            result = read_json(folder / f"results_{n}.json") or Progress(folder, n, 0).history() or {}
            yield from result.get("lines", [])

    run.rewrite_log(lines)


def claim(folder, num_experts):
    """Yields the experts that are neither whole nor another process's, holding each while it is worked on, until all are whole."""
    while missing := [n for n in range(num_experts) if not is_whole(folder, n)]:
        idle = True
        for n in missing:
            with locked(folder / ".locks" / f"expert_{n}", wait=False) as mine:
                if mine and not is_whole(folder, n):
                    idle = False
                    yield n
        if idle:
            time.sleep(_POLL)  # others are at them; one of those may die


def main(argv=None):
    args = config.parse(config.buffer_parser(__doc__), argv)
    run = Run(args, "buffer", default_name="buffer", shared=True)
    task = open_task(args, run.device)
    make_model = model_maker(args, task, run.device)
    folder = experts_folder(args, args.loss_type)
    keep, dtype = min(args.keep_snapshots or args.train_epochs + 1, args.train_epochs + 1), _DTYPES[args.buffer_dtype]
    share_start = args.keep_snapshots is not None
    recipe = ("train_epochs", "batch_train", "temperature", "loss_type", "lr_teacher_img", "lr_teacher_txt", "buffer_dtype")
    model = make_model()
    meta = made_with(args, task) | {key: getattr(args, key) for key in recipe} | {"keep_snapshots": keep}
    prepare_folder(folder, meta | {"parameters": describe_towers(model)})
    whole = [n for n in range(args.num_experts) if is_whole(folder, n)]
    for n in whole:
        print(f"expert {n + 1}/{args.num_experts}: already in {folder}")
    require_space(folder, args.num_experts - len(whole), model, keep, dtype, share_start)

    for n in claim(folder, args.num_experts):
        run.open_wandb(f"{run.name}_{n}", f"{run.id}-{n}", group=run.name)
        progress = Progress(folder, n, keep)
        history, forgotten = train_expert(
            make_model,
            task,
            progress,
            seed=derive_seed(args.seed, "expert", n),
            epochs=args.train_epochs,
            batch_size=args.batch_train,
            loss_fn=LOSSES[args.loss_type],
            temperature=args.temperature,
            lr_img=args.lr_teacher_img,
            lr_txt=args.lr_teacher_txt,
            eval_freq=args.eval_freq,
            device=run.device,
            precision=args.precision,
            on_epoch=report_epochs(run, n, args.num_experts, args.train_epochs),
            on_saved=partial(write_log, run, folder, args.num_experts),
        )
        with undisturbed():
            write_json(folder / f"results_{n}.json", {"expert": n, "seed": args.seed} | history | choose_epochs(history["curve"]))
            save_tensors(forgetting_file(folder, n), {key: forgotten[key] for key in ("events", "learned")})
            write_expert(folder, n, progress.snapshots(), dtype, share_start)
            progress.clear()
    write_log(run, folder, args.num_experts)  # those of other processes too
    run.finish()
    print(f"{args.num_experts} experts in {folder}")
    return folder


if __name__ == "__main__":
    sys.exit(run_program(main))

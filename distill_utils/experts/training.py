"""The training of an expert, from where it stands to its last epoch."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from distill_utils.evaluation.protocols import METRICS
from distill_utils.evaluation.students import gallery_recall
from distill_utils.experts.forgetting import Forgetting
from distill_utils.experts.progress import load_weights
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.runs.signals import undisturbed
from distill_utils.training.epochs import sgd, train_epoch

_ATTEMPTS = 3  # seeds that an expert is tried with before its divergence is the user's to solve


class Recipe(NamedTuple):
    """How each expert of a folder is trained: plain SGD, evaluated every `eval_freq` epochs and last."""

    epochs: int
    batch_size: int
    loss_fn: object
    temperature: float
    lr_img: float
    lr_txt: float
    eval_freq: int
    precision: str = "fp32"


def train_expert(make_model, task, progress, recipe, *, seed, device, on_epoch, on_saved):
    """Train on all real pairs from where `progress` stands; the last history and `Forgetting.state`.

    on_epoch(epoch, values) -> log line is told the loss and, where it is evaluated, the recall; on_saved() is
    called when the epoch is on the disk. Every epoch has random numbers of its own. An expert that diverges
    begins anew under another seed; UserError after the third.
    """
    history = progress.history()
    for attempt in range(history["attempt"] if history else 0, _ATTEMPTS):
        torch.manual_seed(derive_seed(seed, "attempt", attempt))
        model = make_model().to(device)
        try:
            history, forgetting = _where_it_stands(model, task, progress, history, attempt, device)
            optimizer = sgd(model, recipe.lr_img, recipe.lr_txt)
            while history["epoch"] < recipe.epochs:
                epoch = history["epoch"] + 1
                values = _train_one(model, task, optimizer, forgetting, recipe, epoch, attempt, seed, device)
                points = []
                if epoch % recipe.eval_freq == 0 or epoch == recipe.epochs:
                    points = [{"epoch": epoch} | _recall(model, task, device)]
                    values |= {f"Results/{key}": points[0]["test"][key] for key in METRICS}
                    values |= {"Results/val_r_mean": points[0]["val"]["r_mean"]}
                with undisturbed():
                    lines, curve = [*history["lines"], on_epoch(epoch, values)], history["curve"] + points
                    history = {"epoch": epoch, "attempt": attempt, "lines": lines, "curve": curve}
                    progress.save(model, history, forgetting)
                on_saved()
            return history, forgetting.state()
        except Diverged as error:
            tqdm.write(f"seed {attempt + 1} of {_ATTEMPTS} of this expert diverged: {error}")
            progress.clear()
            history, reason = None, error
    advice = "lower --lr_teacher_img and --lr_teacher_txt"
    raise UserError(f"An expert diverged under {_ATTEMPTS} seeds: {advice}. {reason}")


def _where_it_stands(model, task, progress, history, attempt, device):
    """(history, Forgetting) of an expert that goes on, with its weights, or that begins and is then saved."""
    if history:
        saved = progress.weights(history["epoch"])
        load_weights(model, saved)
        return history, Forgetting(len(task.train), device, saved["forgetting"])
    history = {"epoch": 0, "attempt": attempt, "lines": [], "curve": []}
    forgetting = Forgetting(len(task.train), device)
    progress.save(model, history, forgetting)
    return history, forgetting


def _train_one(model, task, optimizer, forgetting, recipe, epoch, attempt, seed, device):
    """An epoch under a seed of its own; the values to log."""
    torch.manual_seed(derive_seed(seed, "epoch", attempt, epoch))
    batches = task.train_batches(recipe.batch_size, generator(seed, "batches", attempt, epoch), device)
    total = task.num_batches(recipe.batch_size)
    bar = tqdm(batches, total=total, leave=False, desc=f"epoch {epoch}/{recipe.epochs}")
    how = recipe.loss_fn, recipe.temperature, recipe.precision
    return {"Loss/train_loss": train_epoch(model, bar, optimizer, *how, forgetting)}


def _recall(model, task, device):
    return {split: gallery_recall(model, gallery, device) for split, gallery in task.galleries.items()}

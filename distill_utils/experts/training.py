"""The training of an expert, from where it stands to its last epoch."""

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


def train_expert(
    make_model,
    task,
    progress,
    *,
    seed,
    epochs,
    batch_size,
    loss_fn,
    temperature,
    lr_img,
    lr_txt,
    eval_freq,
    device,
    precision,
    on_epoch,
    on_saved,
):
    """Plain SGD on all real pairs from where `progress` stands; the last history and `Forgetting.state`.

    Evaluated every `eval_freq` epochs and after the last; on_epoch(epoch, values) -> log line is told the
    loss and, then, the recall, and on_saved() is called when the epoch is on the disk.
    Every epoch has random numbers of its own. An expert that diverges begins anew under another seed;
    UserError after the third.
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
                bar = tqdm(
                    batches, total=task.num_batches(batch_size), leave=False, desc=f"epoch {epoch}/{epochs}"
                )
                values, points = (
                    {
                        "Loss/train_loss": train_epoch(
                            model, bar, optimizer, loss_fn, temperature, precision, forgetting
                        )
                    },
                    [],
                )
                if epoch % eval_freq == 0 or epoch == epochs:
                    points = [
                        {"epoch": epoch}
                        | {
                            split: gallery_recall(model, gallery, device)
                            for split, gallery in task.galleries.items()
                        }
                    ]
                    values |= {f"Results/{key}": points[0]["test"][key] for key in METRICS} | {
                        "Results/val_r_mean": points[0]["val"]["r_mean"]
                    }
                with undisturbed():
                    lines = [*history["lines"], on_epoch(epoch, values)]
                    history = {
                        "epoch": epoch,
                        "attempt": attempt,
                        "lines": lines,
                        "curve": history["curve"] + points,
                    }
                    progress.save(model, history, forgetting)
                on_saved()
            return history, forgetting.state()
        except Diverged as error:
            tqdm.write(f"seed {attempt + 1} of {_ATTEMPTS} of this expert diverged: {error}")
            progress.clear()
            history, reason = None, error
    raise UserError(
        f"An expert diverged under {_ATTEMPTS} seeds: lower --lr_teacher_img and --lr_teacher_txt. {reason}"
    )

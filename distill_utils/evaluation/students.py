"""Fresh students trained on a synthetic set, and their recall on the galleries."""

from functools import partial

import torch
from tqdm import tqdm

from distill_utils.evaluation.protocols import choose_epochs, summarise_students
from distill_utils.evaluation.retrieval import recall_by_group, recall_from_ranks, retrieval_ranks
from distill_utils.runs.processes import ALONE
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.task.decoding import encoder_input
from distill_utils.training.losses import LOSSES
from distill_utils.training.protocol import protocol
from distill_utils.training.students import train_in_turn


@torch.no_grad()
def gallery_recall(model, gallery, device, batch_size=256, breakdown=False):
    """retrieval_recall of a model on a Gallery, in eval mode; `breakdown`: recall_by_group under its name."""
    model.eval()
    images = [model.encode_images(encoder_input(batch, device)) for batch in gallery.images.split(batch_size)]
    texts = [model.encode_texts(batch.to(device)) for batch in gallery.texts.split(8192)]
    ranks = retrieval_ranks(torch.cat(images), torch.cat(texts), gallery.txt2img)
    groups = {"breakdown": recall_by_group(gallery.captions, gallery.txt2img, *ranks)} if breakdown else {}
    return recall_from_ranks(*ranks) | groups


def measured_epochs(epochs, measurements):
    """The epochs after which recall is measured: after every `measurements`-th part of the training."""
    return {max(1, round(epochs * k / measurements)) for k in range(1, measurements + 1)}


def _student(number, make_model, galleries, measured, bar, *, seed, device, breakdown, training):
    """A fresh student, trained by training(model, generator) -> (epoch, loss)s, and its curve."""
    seed = derive_seed(seed, "student", number)
    curve = []
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        model = make_model().to(device)
        trains = protocol(model.frozen_encoder is None)
        for epoch, loss in training(model, generator=generator(seed)):
            bar.update()
            if epoch in measured:
                recall = {
                    split: gallery_recall(model, gallery, device, breakdown=breakdown)
                    for split, gallery in galleries.items()
                }
                curve.append({"epoch": epoch, "train_loss": loss} | recall)
    return choose_epochs(curve) | {"seed": seed, "protocol": trains, "curve": curve}


def evaluate_synthetic_set(
    synthetic,
    task,
    make_model,
    *,
    num_eval=5,
    epochs=100,
    batch_size=128,
    loss_type="WBCE",
    temperature=0.07,
    lrs=None,
    seed=0,
    device="cpu",
    precision="fp32",
    splits=("val", "test"),
    measurements=10,
    breakdown=False,
    then=(),
    restart_rates=False,
    world=ALONE,
):
    """Recall of `num_eval` fresh students, each under its own seed; see `summarise_students`.

    make_model() -> TwoTower, called once a student under that student's seed. lrs: (image, text) learning
    rates; the set's own if None. splits: the galleries that recall is measured on, `measurements` times in a
    training; val alone is enough to choose a step. breakdown: recall by group of queries too. then: further
    sets that the students go on with, see `train_in_turn`, as long with each. world: the processes that
    divide the students. Raises Diverged when a student does.
    """
    sets = [part.to(device) for part in (synthetic, *then)]
    phases = [_phase(part, task, lrs) for part in sets]
    training = partial(
        train_in_turn,
        phases=phases,
        epochs=epochs,
        restart_rates=restart_rates,
        batch_size=batch_size,
        loss_fn=LOSSES[loss_type],
        temperature=temperature,
        precision=precision,
    )
    epochs = epochs * len(sets)
    galleries = {split: task.galleries[split] for split in splits}
    bar = tqdm(total=num_eval * epochs, desc="students", disable=not world.first, leave=False)
    own = {"seed": seed, "device": device, "breakdown": breakdown, "training": training}
    shared = make_model, galleries, measured_epochs(epochs, measurements), bar
    with bar:
        students = world.map([partial(_student, n, *shared, **own) for n in range(num_eval)], device)
    trained = {
        "protocol": students[0]["protocol"],
        "pairs": sum(map(len, sets)),
        "storage": sum(part.storage() for part in sets),
        "epochs": epochs,
    }
    trained |= {"loss": loss_type, "temperature": temperature}
    trained |= {key: phases[0][key] for key in ("lr_img", "lr_txt")}
    return summarise_students(students) | trained


def _phase(synthetic, task, lrs):
    """What a student trains on: a set, what stands for its images, and (image, text) rates, its own if
    None.
    """
    rates = zip(("lr_img", "lr_txt"), lrs or (synthetic.lr_img.item(), synthetic.lr_txt.item()))
    return dict(rates) | {"synthetic": synthetic, "images": task.seen(synthetic.images.detach())}

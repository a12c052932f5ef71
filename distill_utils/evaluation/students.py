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
from distill_utils.training.students import train_student

_MEASUREMENTS = 10  # per student: recall after every tenth of its training


@torch.no_grad()
def gallery_recall(model, gallery, device, batch_size=256, breakdown=False):
    """retrieval_recall of a model in eval mode on a Gallery; with "breakdown", recall_by_group, when asked
    for.
    """
    model.eval()
    images = torch.cat(
        [model.encode_images(encoder_input(batch, device)) for batch in gallery.images.split(batch_size)]
    )
    texts = torch.cat([model.encode_texts(batch.to(device)) for batch in gallery.texts.split(8192)])
    ranks = retrieval_ranks(images, texts, gallery.txt2img)
    groups = {"breakdown": recall_by_group(gallery.captions, gallery.txt2img, *ranks)} if breakdown else {}
    return recall_from_ranks(*ranks) | groups


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
    progress=True,
    breakdown=False,
    world=ALONE,
):
    """Recall of `num_eval` fresh students trained on the set, each under its own seed; see
    `summarise_students`.

    make_model() -> TwoTower, called once a student under that student's seed. lrs: (image, text) learning
    rates; the set's own if None. breakdown: recall by group of queries too. world: the processes that divide
    the students. Raises Diverged when a student does.
    """
    synthetic = synthetic.to(device)
    lr_img, lr_txt = lrs or (synthetic.lr_img.item(), synthetic.lr_txt.item())
    measured = {max(1, round(epochs * k / _MEASUREMENTS)) for k in range(1, _MEASUREMENTS + 1)}
    bar = tqdm(total=num_eval * epochs, desc="students", disable=not (progress and world.first), leave=False)

    def student(number):
        student_seed = derive_seed(seed, "student", number)
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(student_seed)
            model = make_model().to(device)
            training = train_student(
                model,
                synthetic,
                epochs=epochs,
                batch_size=batch_size,
                loss_fn=LOSSES[loss_type],
                temperature=temperature,
                lr_img=lr_img,
                lr_txt=lr_txt,
                generator=generator(student_seed),
                precision=precision,
            )
            curve = []
            for epoch, loss in training:
                bar.update()
                if epoch in measured:
                    recalls = {
                        split: gallery_recall(model, gallery, device, breakdown=breakdown)
                        for split, gallery in task.galleries.items()
                    }
                    curve.append({"epoch": epoch, "train_loss": loss} | recalls)
        return choose_epochs(curve) | {"seed": student_seed, "curve": curve}

    with bar:
        students = world.map([partial(student, number) for number in range(num_eval)], device)
    made_with = {
        "pairs": len(synthetic),
        "storage": synthetic.storage(),
        "loss": loss_type,
        "lr_img": lr_img,
        "lr_txt": lr_txt,
        "epochs": epochs,
    }
    return summarise_students(students) | made_with

"""Students on a synthetic set against the same written out: seeds, rates, dropout, the epochs measured."""

import pytest
import torch
from builders import TinyTask, tiny_model, tiny_set, trained_by_hand

from distill_utils.evaluation import students
from distill_utils.evaluation.retrieval import retrieval_recall
from distill_utils.evaluation.students import evaluate_synthetic_set, gallery_recall
from distill_utils.runs.seeds import generator
from distill_utils.training.losses import LOSSES

TAU = 0.4


def make_model():
    return tiny_model(seed=None)


def evaluate(synthetic, task, **options):
    recipe = {"num_eval": 2, "epochs": 4, "batch_size": 3, "loss_type": "InfoNCE", "temperature": TAU}
    return evaluate_synthetic_set(synthetic, task, make_model, **recipe | {"seed": 5} | options)


def by_hand(model, gallery):
    model.eval()
    with torch.no_grad():
        images, texts = model.encode_images(gallery.images), model.encode_texts(gallery.texts)
    return retrieval_recall(images, texts, gallery.txt2img)


@pytest.mark.parametrize("lrs", [None, (0.02, 0.6)])
def test_students_are_trained_and_measured_as_written_out(lrs):
    synthetic, task = tiny_set(lrs=(0.25, 0.0625)), TinyTask()
    result = evaluate(synthetic, task, lrs=lrs)
    assert len({student["seed"] for student in result["students"]}) == 2
    for student in result["students"]:
        torch.manual_seed(student["seed"])
        model, loader = make_model(), synthetic.loader(3, generator=generator(student["seed"]))
        velocity = None
        for epoch, point in enumerate(student["curve"], 1):
            model.train()
            rates = [lr * (1 if epoch <= 2 else 0.1) for lr in lrs or (0.25, 0.0625)]
            loss, velocity = trained_by_hand(
                model, loader, LOSSES["InfoNCE"], TAU, rates, velocity, momentum=0.9, decay=5e-4
            )
            assert point["epoch"] == epoch and point["train_loss"] == pytest.approx(loss, rel=1e-9)
            assert point["val"] == by_hand(model, task.galleries["val"])
            assert point["test"] == by_hand(model, task.galleries["test"])
        assert epoch == 4
    assert (result["lr_img"], result["lr_txt"]) == pytest.approx(lrs or (0.25, 0.0625))


def test_students_differ_and_another_seed_gives_others():
    synthetic, task = tiny_set(), TinyTask()
    first, again, other = (evaluate(synthetic, task, seed=seed)["students"] for seed in (5, 5, 6))
    losses = [student["curve"][0]["train_loss"] for student in (*first, *other)]
    assert len(set(losses)) == 4 and first == again


def test_recall_is_measured_without_dropout():
    model, gallery = tiny_model(dropout=0.9), TinyTask().galleries["test"]
    found = [gallery_recall(model.train(), gallery, "cpu", batch_size=3) for _ in range(3)]
    assert found == [by_hand(model, gallery)] * 3


def test_students_train_with_dropout_after_a_measurement_too(monkeypatch):
    alive, train_epoch = [], students.train_in_turn.__globals__["train_epoch"]

    def watched(model, batches, *args):
        return train_epoch(model, (alive.append(model.training) or batch for batch in batches), *args)

    monkeypatch.setitem(students.train_in_turn.__globals__, "train_epoch", watched)
    evaluate(tiny_set(), TinyTask())
    assert len(alive) == 2 * 4 * 3 and all(alive)


def test_recall_is_measured_after_every_tenth_of_the_training():
    result = evaluate(tiny_set(), TinyTask(), num_eval=1, epochs=25)
    epochs = [point["epoch"] for point in result["students"][0]["curve"]]
    assert epochs == [2, 5, 8, 10, 12, 15, 18, 20, 22, 25]


def test_an_evaluation_leaves_the_random_numbers_alone():
    state = torch.get_rng_state()
    evaluate(tiny_set(), TinyTask(), num_eval=1)
    assert torch.equal(torch.get_rng_state(), state)

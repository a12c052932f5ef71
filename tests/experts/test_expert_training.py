"""An expert's training against SGD written out: no momentum, no decay, no schedule; dropout alive."""

import pytest
import torch
from builders import TinyTask, tiny_model, trained_by_hand

from distill_utils.evaluation.protocols import METRICS
from distill_utils.evaluation.retrieval import retrieval_recall
from distill_utils.experts.progress import Progress
from distill_utils.experts.training import Recipe, train_expert
from distill_utils.runs.seeds import derive_seed, generator
from distill_utils.training.losses import LOSSES

TAU, LRS, EPOCHS = 0.4, (0.25, 0.0625), 3


def make_model():
    return tiny_model(seed=None)


def train(folder, **options):
    """(progress, history, forgotten) of an expert on the tiny task."""
    progress = Progress(folder, 0, EPOCHS + 1)
    recipe = Recipe(EPOCHS, 4, LOSSES["InfoNCE"], TAU, *LRS, eval_freq=2)
    recipe = recipe._replace(**{key: options.pop(key) for key in list(options) if key in Recipe._fields})
    how = {
        "seed": 7,
        "device": "cpu",
        "on_epoch": lambda epoch, values: {"epoch": epoch} | values,
        "on_saved": lambda: None,
    }
    return progress, *train_expert(make_model, TinyTask(), progress, recipe, **how | options)


def recall_by_hand(model, gallery):
    model.eval()
    with torch.no_grad():
        images, texts = model.encode_images(gallery.images), model.encode_texts(gallery.texts)
    return retrieval_recall(images, texts, gallery.txt2img)


def test_an_expert_is_plain_sgd_on_shuffled_pairs(tmp_path):
    progress, history, _ = train(tmp_path)
    task, losses, points = TinyTask(), [], {}
    torch.manual_seed(derive_seed(7, "attempt", 0))
    model = make_model()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        torch.manual_seed(derive_seed(7, "epoch", 0, epoch))
        batches = task.train_batches(4, generator(7, "batches", 0, epoch), "cpu")
        losses.append(trained_by_hand(model, batches, LOSSES["InfoNCE"], TAU, LRS)[0])
        saved = progress.weights(epoch)
        for tower, pieces in ((model.image_encoder, saved["img"]), (model.text_projection, saved["txt"])):
            trained = [parameter for parameter in tower.parameters() if parameter.requires_grad]
            assert len(trained) == len(pieces)
            assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(trained, pieces))
        points[epoch] = {split: recall_by_hand(model, task.galleries[split]) for split in task.galleries}
    assert [line["Loss/train_loss"] for line in history["lines"]] == pytest.approx(losses, rel=1e-9)
    # Measured every second epoch and after the last, without dropout; the log's recall is test's.
    assert history["curve"] == [{"epoch": epoch} | points[epoch] for epoch in (2, 3)]
    assert "Results/r_mean" not in history["lines"][0]
    for line in history["lines"][1:]:
        assert all(line[f"Results/{key}"] == points[line["epoch"]]["test"][key] for key in METRICS)
        assert line["Results/val_r_mean"] == points[line["epoch"]]["val"]["r_mean"]


def test_an_experts_seed_decides_its_start_and_its_batches(tmp_path):
    runs = [train(tmp_path / str(n), seed=seed) for n, seed in enumerate((7, 7, 8))]
    starts, ends = ([progress.weights(e)["img"][0] for progress, *_ in runs] for e in (0, EPOCHS))
    for first, again, other in (starts, ends):
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_forgotten_is_counted_per_pair(tmp_path):
    *_, forgotten = train(tmp_path, batch_size=3, lr_img=2.0, lr_txt=2.0, epochs=6)
    assert forgotten["events"].shape == forgotten["learned"].shape == (11,)
    assert 0 < int(forgotten["learned"].sum()) and 0 < int(forgotten["events"].sum())

"""What experts are trained on: shuffled real pairs, augmented unless --no_aug, each image with its texts."""

import pytest
import torch

from data.transforms import normalise, train_transform
from distill_utils.runs.seeds import generator
from distill_utils.task.decoding import free_cores
from distill_utils.task.retrieval_task import RetrievalTask


@pytest.fixture(scope="module")
def make_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")

    def make(augment):
        where = {"image_root": folder / "data", "ann_root": folder / "data"}
        options = {"image_size": 24, "toy_sizes": (9, 2, 2), "num_workers": 0}
        options["augmentation"] = "published" if augment else None
        return RetrievalTask("toy", "toy_bert", checkpoint_dir=folder / "checkpoints", **where, **options)

    return {augment: make(augment) for augment in (True, False)}.__getitem__


def epoch(task, seed):
    """{pair: (image, text)} in the order seen, and that order."""
    seen, order = {}, []
    for images, texts, similarity, pairs in task.train_batches(7, generator(seed), "cpu"):
        assert torch.equal(similarity, torch.eye(len(pairs)))
        seen |= {int(pair): (image, text) for pair, image, text in zip(pairs, images, texts)}
        order += pairs.tolist()
    return seen, order


@pytest.mark.parametrize("augment", [True, False])
def test_every_epoch_has_every_pair_once_in_another_order(make_task, augment):
    task = make_task(augment)
    orders = [epoch(task, seed)[1] for seed in (0, 1, 0)]
    pairs = list(range(len(task.train)))
    assert orders[0] == orders[2] != orders[1] and pairs not in orders
    assert sorted(orders[0]) == sorted(orders[1]) == pairs
    # Captions of one image lie together in the file, not in a batch.
    assert not any(len({pair // 5 for pair in order[:7]}) <= 2 for order in orders)


@pytest.mark.parametrize("augment", [True, False])
def test_images_are_augmented_anew_unless_told_otherwise(make_task, augment):
    task = make_task(augment)
    torch.manual_seed(0)
    first, second = (epoch(task, seed)[0] for seed in (0, 1))
    plain, texts, _ = task.real_pairs(torch.arange(len(task.train)))
    changed = [not torch.equal(first[pair][0], second[pair][0]) for pair in first]
    moved = [not torch.equal(first[pair][0], plain[pair]) for pair in first]
    assert any(changed) == augment == any(moved)
    assert all(torch.equal(text, texts[pair]) for pair, (_, text) in first.items())


def test_a_frozen_encoders_features_are_those_of_the_pairs_images(make_task):
    task = make_task(False)
    plain, *_ = task.real_pairs(torch.arange(len(task.train)))
    pixels = task.galleries
    try:
        task.look_through(torch.nn.Flatten(), "cpu", batch_size=4)
        assert torch.equal(task.seen(plain), plain.flatten(1))
        seen, order = epoch(task, 0)
        assert order != sorted(order)
        assert all(torch.equal(feature, plain[pair].flatten()) for pair, (feature, _) in seen.items())
        for split in ("val", "test"):
            assert torch.equal(task.galleries[split].images, normalise(pixels[split].images).flatten(1))
    finally:
        task.look_through(None, "cpu")
    assert task.seen(plain) is plain and torch.equal(task.galleries["val"].images, pixels["val"].images)


@pytest.mark.parametrize("augmentation", ["published", "strong"])
def test_the_number_of_workers_changes_no_image_and_no_other_random_number(make_task, augmentation):
    task = make_task(True)
    task.train.transform = train_transform(24, augmentation)
    epochs = []
    for workers in (0, 1, 2):
        task.num_workers = workers
        torch.manual_seed(4)
        seen, order = epoch(task, 7)
        epochs.append((torch.stack([seen[pair][0] for pair in order]), order, torch.rand(3)))
    task.num_workers = 0
    for images, order, following in epochs[1:]:
        assert torch.equal(images, epochs[0][0]) and order == epochs[0][1]
        assert torch.equal(following, epochs[0][2])


def test_workers_are_the_cores_that_there_are(monkeypatch):
    def cores(number, ranks=None):
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(number)), raising=False)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if ranks:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        return free_cores()

    assert [cores(1), cores(6), cores(64)] == [1, 6, 16]
    assert [cores(64, 8), cores(64, 2), cores(2, 8)] == [8, 16, 1]  # ranks of one host share them

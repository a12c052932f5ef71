"""Coresets of pairs against brute force, and as commands on toy scenes and on real photos."""

import numpy as np
import pytest
import torch
from commands import DISTILL, EXPERTS, toy

import buffer
import distill_lors
from distill_utils import coreset, evaluate
from distill_utils.experts.forgetting import Forgetting, read_forgetting
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import generator
from distill_utils.selection import coresets
from distill_utils.selection.coresets import CORESETS
from distill_utils.selection.features import PairFeatures, open_features
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.task.from_flags import open_task


@pytest.fixture(params=[0, 1, 2])
def features(request):
    """12 images of 1 to 4 captions, unit features in float64."""
    numbers = torch.Generator().manual_seed(request.param)
    index = torch.arange(12).repeat_interleave(torch.randint(1, 5, (12,), generator=numbers))

    def unit(n):
        vectors = torch.randn(n, 7, generator=numbers, dtype=torch.float64) + 0.5
        return torch.nn.functional.normalize(vectors)

    return PairFeatures(unit(12), unit(len(index)), index)


def brute_force(features, n, unique, best):
    """n times the first best of the pairs that may be taken: best(joint [P, 2 D], chosen) -> score of each."""
    joint, chosen = features.joint(), []
    for _ in range(n):
        scores = best(joint, chosen)
        for pair in range(len(joint)):
            if pair in chosen or unique and features.image_index[pair] in features.image_index[chosen]:
                scores[pair] = -torch.inf
        chosen.append(int(scores.argmax()))
    return chosen


@pytest.mark.parametrize("unique", [True, False])
def test_herding_brings_the_mean_nearest_at_every_step(features, unique):
    def distance(joint, chosen):
        means = torch.stack(
            [torch.cat([joint[chosen], joint[p : p + 1]]).mean(dim=0) for p in range(len(joint))]
        )
        return -(means - joint.mean(dim=0)).norm(dim=1)

    assert coresets.herding(features, 9, unique) == brute_force(features, 9, unique, distance)


@pytest.mark.parametrize("unique", [True, False])
def test_k_center_takes_the_farthest_at_every_step(features, unique):
    def distance(joint, chosen):
        if not chosen:
            return -(joint - joint.mean(dim=0)).norm(dim=1)
        return torch.cdist(joint, joint[chosen]).min(dim=1).values

    assert coresets.k_center(features, 9, unique) == brute_force(features, 9, unique, distance)


def test_k_means_takes_the_pairs_nearest_to_centroids(features):
    chosen = coresets.k_means(features, 12, 0)
    assert len(set(features.image_index[chosen].tolist())) == 12
    spread = torch.cat(
        [features.joint()[:1] + 0.01 * i for i in range(3)] + [-features.joint()[:1]]
    )  # two clusters, one of a single pair
    two = PairFeatures(spread[:, :7], spread[:, 7:], torch.arange(4))
    assert 3 in coresets.k_means(two, 2, 0)


def test_mean_and_products_are_those_of_the_joint_embedding(features):
    joint = features.joint()
    assert torch.allclose(features.mean().flatten(), joint.mean(dim=0)) and torch.allclose(
        joint.norm(dim=1), torch.ones(len(joint)).double()
    )
    assert torch.allclose(features.dot(features.row(3)), joint @ joint[3])
    assert torch.allclose(
        features.clip_scores(), (features.images[features.image_index] * features.texts).sum(dim=1)
    )


def test_vas_takes_the_images_most_like_the_others(features):
    chosen = coresets.by_vas(features, 5)
    best_caption = [
        max(
            range(len(features.texts)),
            key=lambda p: (features.image_index[p] == i, features.clip_scores()[p]),
        )
        for i in range(12)
    ]
    cosines = (features.images @ features.images.T).square().mean(dim=1)
    assert chosen == [best_caption[i] for i in cosines.argsort(descending=True)[:5]]
    clip = features.clip_scores()[best_caption]
    kept = clip.argsort(descending=True)[:6].tolist()
    expected = sorted(kept, key=lambda i: -cosines[i])[:4]
    assert coresets.by_vas(features, 4, fraction=0.5) == [best_caption[i] for i in expected]
    assert sorted(coresets.by_vas(features, 5, rounds=1)) == sorted(chosen)
    assert len(set(coresets.by_vas(features, 5, rounds=7))) == 5
    with pytest.raises(UserError, match="--fraction 0.25 of 12 pairs leaves 3"):
        coresets.by_vas(features, 5, fraction=0.25)


def test_those_never_learned_come_first_then_those_forgotten_most():
    events, learned = torch.tensor([0, 3, 1, 0, 2, 0]), torch.tensor([2, 2, 2, 0, 1, 1])
    numbers = torch.Generator().manual_seed(0)
    assert coresets.most_forgotten(events, learned, 4, torch.arange(6), numbers) == [3, 1, 4, 2]
    assert (
        coresets.most_forgotten(events, learned, 3, torch.tensor([0, 1, 1, 1, 1, 2]), numbers)[0] == 3
    )  # one a photo
    ties = {
        tuple(
            coresets.most_forgotten(events[:1].repeat(6), learned[:1].repeat(6), 2, torch.arange(6), numbers)
        )
        for _ in range(20)
    }
    assert len(ties) > 5


def test_a_pair_is_forgotten_when_it_was_right_and_is_wrong():
    record = Forgetting(4, "cpu")
    right = torch.eye(2) * 2
    wrong = torch.tensor(
        [[0.0, 1.0], [0.0, 2.0]]
    )  # the first image's best text is the second; the second pair is right
    for logits, pairs in [
        (right, [0, 1]),
        (right, [2, 3]),
        (wrong, [0, 1]),
        (wrong, [3, 2]),
        (right, [0, 1]),
        (wrong, [0, 1]),
    ]:
        record(logits, torch.tensor(pairs))
    state = record.state()
    assert (
        state["events"].tolist() == [2, 0, 0, 1]
        and state["learned"].all()
        and state["right"].tolist() == [False, True, True, False]
    )
    again = Forgetting(4, "cpu", state)
    again(right, torch.tensor([0, 3]))
    assert again.state()["events"].tolist() == [2, 0, 0, 1] and again.state()["right"].all()


# --- commands ---


def choose(folder, method, n, *flags):
    return coreset.main(
        [method, *toy(folder), "--buffer_path", f"{folder}/buffers", "--num_queries", str(n), *flags]
    )


@pytest.mark.parametrize("method", CORESETS)
def test_every_method_chooses_distinct_pairs_of_distinct_photos(here, method):
    path = choose(here, method, 20)
    indices = np.load(path.with_name("indices.npy"))
    assert (
        len(set(indices)) == 20
        and len(set(indices // 5)) == 20
        and indices.min() >= 0
        and indices.max() < 150
    )
    synthetic = SyntheticSet.load(path)
    assert torch.equal(synthetic.similarity(), torch.eye(20)) and synthetic.meta["coreset"] == method
    again = np.load(choose(here, method, 20).with_name("indices.npy"))
    assert np.array_equal(indices, again)
    several = np.load(choose(here, method, 40, "--unique_images", "false").with_name("indices.npy"))
    assert len(set(several)) == 40


def test_buffer_records_what_its_experts_forgot(here):
    folder = here / "buffers/toy/test_nfnet_toy_bert/InfoNCE"
    events, learned = read_forgetting(folder, 150)
    assert (
        0 < learned.sum() <= 300 and learned.max() <= 2 and events.max() <= 2 * 1
    )  # three epochs: right, wrong and right at most
    with pytest.raises(UserError, match="149 train pairs"):
        read_forgetting(folder, 149)


def test_a_coreset_is_what_distillation_begins_with_and_what_experts_train_on(here):
    path = choose(here, "herding", 6)
    indices = path.with_name("indices.npy")
    run = [
        *toy(here),
        *DISTILL,
        "--buffer_path",
        f"{here}/buffers",
        "--name",
        "from_coreset",
        "--fresh",
        "--init_indices",
        str(indices),
    ]
    first = SyntheticSet.load(distill_lors.main(run) / "distilled_0.pt")
    assert torch.equal(first.images, SyntheticSet.load(path).images) and torch.equal(
        first.texts, SyntheticSet.load(path).texts
    )
    with pytest.raises(UserError, match="names 6 pairs, fewer than --num_queries 7"):
        distill_lors.main([*run, "--num_queries", "7"])
    subset = ["--train_subset", str(indices)]
    experts = buffer.main(
        [
            *toy(here),
            *EXPERTS,
            "--num_experts",
            "1",
            "--buffer_path",
            f"{here}/subset",
            "--name",
            "subset",
            *subset,
        ]
    )
    assert len(torch.load(experts / "forgetting_0.pt", weights_only=True)["events"]) == 6
    with pytest.raises(UserError, match="--train_subset"):
        distill_lors.main([*run, "--buffer_path", f"{here}/subset"])
    of_subset = coreset.main(
        [
            "clip",
            *toy(here),
            "--buffer_path",
            f"{here}/subset",
            "--num_queries",
            "3",
            "--name",
            "of_subset",
            *subset,
        ]
    )
    assert set(np.load(of_subset.with_name("indices.npy"))) < set(
        np.load(indices)
    )  # numbers of the annotation file
    rows = evaluate.main([*toy(here), "--ckpt_path", str(path), "--num_eval", "1", "--epoch_eval_train", "2"])
    assert rows["distilled"]["pairs"] == 6


@pytest.mark.parametrize(
    "values, sentence",
    [
        (np.array([1, 2, 2]), "more than once"),
        (np.array([[1, 2]]), "whole numbers in one dimension"),
        (np.array([0.5, 1]), "whole numbers in one dimension"),
        (np.array([0, 150]), "names the train pair 150"),
        (np.array([-1, 3]), "names the train pair -1"),
        (np.array([], int), "whole numbers"),
        (np.array([None]), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_names_no_train_pairs_gets_a_sentence(here, tmp_path, values, sentence):
    path = tmp_path / "indices.npy"
    if values is not None:
        np.save(path, values)
    with pytest.raises(UserError, match=sentence) as error:
        choose(here, "random", 2, "--train_subset", str(path))
    assert "indices.npy" in str(error.value)


def test_what_cannot_be_chosen_gets_a_sentence(here, tmp_path):
    with pytest.raises(UserError, match="31 asks for more pairs than the 30 train images"):
        choose(here, "herding", 31)
    with pytest.raises(UserError, match="--expert 2 does not exist"):
        choose(here, "herding", 3, "--expert", "2")
    with pytest.raises(UserError, match="holds no experts"):
        choose(here, "herding", 3, "--buffer_path", f"{tmp_path}/none")
    with pytest.raises(UserError, match="holds no forgetting"):
        choose(here, "forgetting", 3, "--buffer_path", f"{tmp_path}/none")
    with pytest.raises(UserError, match="[Ii]nvalid choice"):
        choose(here, "best", 3)


def test_every_method_on_real_photos(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = [
        *f"--dataset flickr8k --image_root {shared}/flickr8k_1k --ann_root {shared}/flickr8k_1k --image_size 32 --image_encoder test_nfnet".split(),
        *f"--image_pretrained false --text_encoder toy_bert --checkpoint_dir {tmp_path}/checkpoints --num_workers 0 --no_aug --device cpu".split(),
        *f"--buffer_path {tmp_path}/buffers".split(),
    ]
    folder = buffer.main([*photos, *"--num_experts 1 --train_epochs 1 --eval_freq 1".split()])
    path = coreset.main(["herding", *photos, "--num_queries", "50"])
    args = flags.parse(coreset.make_parser(), ["herding", *photos])
    task = open_task(args, torch.device("cpu"))
    features = open_features(args, task, torch.device("cpu"))
    forgetting = read_forgetting(folder, 3000)
    for method in CORESETS:
        pairs = coresets.select(
            method,
            task,
            50,
            generator(0, "coreset"),
            features=lambda: features,
            forgetting=lambda: forgetting,
        )
        assert len(set(task.train.image_index[pairs].tolist())) == 50
        if method == "herding":
            assert np.array_equal(np.load(path.with_name("indices.npy")), pairs.numpy())

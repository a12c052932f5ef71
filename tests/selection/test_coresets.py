"""Coresets of pairs against brute force."""

import pytest
import torch

from distill_utils.experts.forgetting import Forgetting
from distill_utils.runs.errors import UserError
from distill_utils.selection import coresets
from distill_utils.selection.features import PairFeatures


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
    """n times the first best of the pairs that may be taken: best(joint [P, 2 D], chosen) -> scores [P]."""
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


def planted(clusters=5, each=12, seed=0):
    """Pairs about `clusters` points that are far apart, image and text alike, but for the last of each, whose
    text is of the next cluster: (PairFeatures, the cluster of each image, the last ones).
    """
    numbers = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=numbers, dtype=torch.float64)).Q[:clusters]
    of = torch.arange(clusters).repeat_interleave(each)

    def near(points):
        noise = 0.05 * torch.randn(points.shape, generator=numbers, dtype=torch.float64)
        return torch.nn.functional.normalize(points + noise)

    images, texts = near(centres[of]), near(centres[of])
    wrong = torch.arange(each - 1, clusters * each, each)
    texts[wrong] = near(centres[(of[wrong] + 1) % clusters])
    return PairFeatures(images, texts, torch.arange(clusters * each)), of, wrong


@pytest.mark.parametrize("seed", range(3))
def test_prototypes_take_one_pair_of_each_planted_cluster_and_none_that_does_not_agree(seed):
    features, of, wrong = planted(seed=seed)
    chosen = coresets.prototypes(features, 5, seed)
    assert sorted(of[chosen].tolist()) == [0, 1, 2, 3, 4]
    assert not set(chosen) & set(wrong.tolist())
    for pair in chosen:  # the nearest of its cluster's agreeing pairs to their mean
        same = torch.tensor([p for p in (of == of[pair]).nonzero().flatten().tolist() if p not in wrong])
        kept = features.clip_scores().argsort(descending=True)[: int(0.8 * len(of))]
        same = same[torch.isin(same, kept)]
        mean = features.joint()[same].mean(0)
        assert pair == int(same[(features.joint()[same] @ mean).argmax()])


@pytest.mark.parametrize("n, unique", [(1, True), (9, False), (12, True)])
def test_prototypes_are_as_many_as_asked_for(features, n, unique):
    chosen = coresets.prototypes(features, n, 0, unique)
    assert len(set(chosen)) == n
    assert not unique or len(set(features.image_index[chosen].tolist())) == n


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

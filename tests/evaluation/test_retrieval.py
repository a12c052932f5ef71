"""Recall against a loop over sorted lists, ties and all; and what must never look like success."""

import pytest
import torch
import torch.nn.functional as F

from distill_utils.evaluation.retrieval import recall_by_group, retrieval_ranks, retrieval_recall
from distill_utils.runs.errors import UserError


def naive(image_features, text_features, txt2img, ks=(1, 5, 10)):
    """Sort every query's candidates; of equal scores, the wrong items come before the right ones."""
    scores = (image_features @ text_features.T).tolist()
    n, m = len(image_features), len(text_features)
    image_of = txt2img.tolist()
    hits = {f"{side}_r{k}": [] for side in ("img", "txt") for k in ks}
    for t in range(m):
        ranked = sorted(range(n), key=lambda i: (-scores[i][t], i == image_of[t]))
        for k in ks:
            hits[f"img_r{k}"].append(image_of[t] in ranked[:k])
    for i in range(n):
        ranked = sorted(range(m), key=lambda t: (-scores[i][t], image_of[t] == i))
        for k in ks:
            hits[f"txt_r{k}"].append(any(image_of[t] == i for t in ranked[:k]))
    recalls = {key: 100 * sum(values) / len(values) for key, values in hits.items()}
    return recalls | {"r_mean": sum(recalls.values()) / len(recalls)}


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("levels", [1, 2, 1000])  # few levels: many ties
def test_equals_sorting(n, levels):
    for seed in range(5):
        torch.manual_seed(seed)
        counts = torch.randint(1, 8, (n,))  # captions per image differ
        txt2img = torch.arange(n).repeat_interleave(counts)[torch.randperm(int(counts.sum()))]
        # Small whole numbers: products are exact, so ties are ties in both.
        images = torch.randint(0, levels + 1, (n, 3)).double()
        texts = images[txt2img] + torch.randint(0, levels + 1, (len(txt2img), 3))
        assert retrieval_recall(images, texts, txt2img) == pytest.approx(naive(images, texts, txt2img))


def test_two_matrices_checked_by_eye():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.9, 0, 0.1]])  # the third text points to the first image
    result = retrieval_recall(images, texts, torch.tensor([0, 1, 2]), ks=(1, 2))
    # text to image: 2 of 3 at once, all within 2. image 2 scores its own text .1 and the others 0: a hit.
    assert (result["img_r1"], result["img_r2"]) == pytest.approx((200 / 3, 100))
    assert result["txt_r1"] == 100


@pytest.mark.parametrize("n", [2, 11, 130])
def test_constant_features_are_no_success(n):
    result = retrieval_recall(torch.ones(n, 4), torch.ones(5 * n, 4), torch.arange(n).repeat_interleave(5))
    assert result["img_r1"] == 0 and result["txt_r1"] == 0
    assert result["img_r5"] == (100 if n <= 5 else 0) and result["txt_r10"] == 100 * (5 * (n - 1) < 10)


def test_perfect_features():
    features = F.normalize(torch.randn(50, 16), dim=1)
    assert retrieval_recall(features, features, torch.arange(50))["r_mean"] == 100


def test_chance():
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(2000, 8), dim=1) for _ in range(2))
    assert retrieval_recall(images, texts, torch.arange(2000))["img_r10"] == pytest.approx(0.5, abs=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_features_raise(value, side):
    features = [torch.ones(3, 2), torch.ones(3, 2)]
    features[side][1, 0] = value
    with pytest.raises(UserError, match="1 of 6 (image|text) features"):
        retrieval_recall(*features, torch.arange(3))


@pytest.mark.parametrize("txt2img", [[0, 1], [0, 1, 3], [0, 1, -1], [0, 0, 1]])
def test_a_wrong_index_is_refused(txt2img):
    with pytest.raises(UserError, match="txt2img"):
        retrieval_recall(torch.ones(3, 2), torch.ones(3, 2), torch.tensor(txt2img))


def test_groups_are_a_partition_whose_recalls_average_to_the_whole():
    torch.manual_seed(0)
    counts = [1, 5, 2, 5, 5, 1, 7, 2]
    txt2img = torch.repeat_interleave(torch.arange(8), torch.tensor(counts))
    images = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
    texts = torch.nn.functional.normalize(images[txt2img] + torch.randn(len(txt2img), 4), dim=1)
    captions = [" ".join(["word"] * int(n)) for n in torch.randint(1, 12, (len(txt2img),))]
    groups = recall_by_group(captions, txt2img, *retrieval_ranks(images, texts, txt2img))
    whole = retrieval_recall(images, texts, txt2img)
    for prefix, side, total in (("captions of", "img", len(captions)), ("images with", "txt", 8)):
        own = [cells for name, cells in groups.items() if name.startswith(prefix)]
        assert sum(cells["queries"] for cells in own) == total
        for k in (1, 5, 10):
            assert sum(cells["queries"] * cells[f"{side}_r{k}"] for cells in own) / total == pytest.approx(
                whole[f"{side}_r{k}"]
            )
    assert (
        groups["images with 5 captions"]["queries"] == 3
        and len([name for name in groups if name.startswith("captions of")]) == 4
    )


@pytest.mark.parametrize("captions", [["a b"] * 5, ["", "a", "a b c", "a", "a"]])
def test_groups_of_odd_lengths(captions):
    groups = recall_by_group(captions, torch.arange(5), torch.zeros(5), torch.zeros(5))
    assert sum(cells["queries"] for name, cells in groups.items() if name.startswith("captions of")) == 5

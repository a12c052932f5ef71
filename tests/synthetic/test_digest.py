"""Which set a number is of: a set's digest, and rows of results that name it."""

import pytest
import torch

from distill_utils.runs.errors import UserError
from distill_utils.synthetic.checkpoint import belongs_to, find_checkpoint
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import (
    FixedSimilarity,
    FullSimilarity,
    IdentitySimilarity,
    build_similarity,
)


def build(similarity=None, seed=0, **meta):
    numbers = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(4, 3, 5, 5, generator=numbers), torch.randn(4, 6, generator=numbers)
    return SyntheticSet(images, texts, similarity or IdentitySimilarity(4), 0.1, 0.2, meta)


def lowrank():
    similarity = build_similarity("lowrank", 4, rank=2, alpha=3.0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        similarity.right.fill_(0.25)
    return similarity


MATRIX = torch.eye(4) + 0.1
SIMILARITIES = [IdentitySimilarity(4), FullSimilarity(4, MATRIX), FixedSimilarity(MATRIX), lowrank()]


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda similarity: similarity.kind)
def test_a_set_keeps_its_digest_on_the_disk(similarity, tmp_path):
    synthetic = build(similarity, loss="WBCE")
    synthetic.save(tmp_path / "distilled_0.pt")
    loaded = SyntheticSet.load(tmp_path / "distilled_0.pt")
    assert loaded.digest() == synthetic.digest() and len(synthetic.digest()) == 16
    assert build(similarity, loss="InfoNCE").digest() == synthetic.digest()  # of the tensors alone


def test_every_tensor_counts():
    sets = [build(similarity) for similarity in SIMILARITIES]
    for parameter in ("images", "texts", "lr_img", "lr_txt"):
        changed = build(SIMILARITIES[3])
        with torch.no_grad():
            getattr(changed, parameter).flatten()[-1].add_(1e-4)
        sets.append(changed)
    for name in ("diagonal", "left", "right"):
        changed = build(lowrank())
        with torch.no_grad():
            getattr(changed.similarity, name).flatten()[-1].add_(1e-4)
        sets.append(changed)
    other = lowrank()
    other.alpha = 2.0
    sets += [build(other), build(seed=1)]
    assert len({one.digest() for one in sets}) == len(sets) == 4 + 4 + 3 + 2


def test_a_row_belongs_to_the_set_that_it_names(tmp_path):
    one, other = build(), build(seed=1)
    path = tmp_path / "distilled_3.pt"
    named = {"file": path.name, "digest": one.digest()}
    assert belongs_to(named, path, one) and not belongs_to(named, path, other)  # the file was written anew
    assert belongs_to(named, tmp_path / "copy.pt", one)
    assert belongs_to({"file": path.name}, path, one)
    assert belongs_to(named, path, None) and not belongs_to(named, tmp_path / "distilled_30.pt", None)
    assert not belongs_to({"file": "distilled_2.pt"}, path, one) and not belongs_to({}, path, one)


@pytest.mark.parametrize("step", ["8", "[3]", '"3"', "true", "3.0", "null", "1e999"])
def test_a_chosen_step_without_a_set_is_a_sentence(tmp_path, step):
    build().save(tmp_path / "distilled_1.pt")
    build().save(tmp_path / "distilled_3.pt")
    (tmp_path / "results.json").write_text(f'{{"selected_step": {step}}}')
    with pytest.raises(UserError, match="of which there is no set"):
        find_checkpoint(tmp_path)
    (tmp_path / "results.json").write_text('{"selected_step": 1}')
    assert find_checkpoint(tmp_path).name == "distilled_1.pt"
    (tmp_path / "results.json").unlink()
    assert find_checkpoint(tmp_path).name == "distilled_3.pt"

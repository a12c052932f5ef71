"""The synthetic set in memory and on disk."""

import pytest
import torch

from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import IdentitySimilarity, build_similarity


def make(n=5, sim_type="lowrank"):
    torch.manual_seed(0)
    similarity = build_similarity(sim_type, n, rank=2, alpha=0.5)
    with torch.no_grad():
        for parameter in similarity.parameters():
            parameter.normal_()
    return SyntheticSet(
        torch.randn(n, 3, 6, 7),
        torch.randn(n, 4),
        similarity,
        0.2,
        0.05,
        {"loss": "WBCE", "source_captions": ["a dog"] * n},
    )


@pytest.mark.parametrize("sim_type", ["lowrank", "full", "identity"])
def test_round_trip(tmp_path, sim_type):
    saved = make(sim_type=sim_type)
    saved.save(tmp_path / "distilled_7.pt")
    loaded = SyntheticSet.load(tmp_path / "distilled_7.pt")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(saved.similarity(), loaded.similarity()) and loaded.similarity.kind == sim_type
    assert loaded.meta["source_captions"] == ["a dog"] * 5 and loaded.meta["mean"][0] == pytest.approx(
        0.48145466
    )
    assert [path.name for path in tmp_path.iterdir()] == ["distilled_7.pt"]


def test_the_file_has_the_documented_keys(tmp_path):
    saved = make()
    saved.save(tmp_path / "d.pt")
    raw = torch.load(tmp_path / "d.pt", weights_only=True)
    assert set(raw) == {
        "image",
        "text",
        "similarity_params",
        "similarity_mat",
        "syn_lr_img",
        "syn_lr_txt",
        "meta",
    }
    w, left, right = raw["similarity_params"]
    assert torch.allclose(raw["similarity_mat"], w.diag() + 0.25 * left @ right.T)


def test_a_file_of_the_reference_loads(tmp_path):
    ours = make()
    torch.save(
        {
            "image": ours.images.detach(),
            "text": ours.texts.detach(),
            "similarity_params": [torch.ones(5), torch.ones(5, 2), torch.ones(2, 5)],
            "similarity_mat": ours.similarity().detach(),
            "syn_lr_img": torch.tensor([0.3]),
            "syn_lr_txt": torch.tensor(0.4),
        },
        tmp_path / "d.pt",
    )
    loaded = SyntheticSet.load(tmp_path / "d.pt")
    assert torch.equal(loaded.similarity(), ours.similarity()) and float(loaded.lr_img) == pytest.approx(0.3)


def test_two_lines_to_tensors_and_to_a_loader(tmp_path):
    make().save(tmp_path / "d.pt")
    images, texts, similarity = SyntheticSet.load(tmp_path / "d.pt").tensors()
    batches = list(SyntheticSet.load(tmp_path / "d.pt").loader(batch_size=2, shuffle=False))
    assert [len(batch[0]) for batch in batches] == [2, 2, 1]  # every pair once, a short last batch
    assert torch.equal(torch.cat([batch[0] for batch in batches]), images) and torch.equal(
        batches[1][1], texts[2:4]
    )
    assert torch.allclose(batches[1][2], similarity[2:4, 2:4], atol=1e-6)
    shuffled = torch.cat([batch[1] for batch in SyntheticSet.load(tmp_path / "d.pt").loader(batch_size=3)])
    assert sorted(shuffled[:, 0].tolist()) == sorted(texts[:, 0].tolist())


def test_a_runs_folder_gives_the_set_chosen_on_val(tmp_path):
    def number(source):
        return SyntheticSet.load(source).meta["step"]

    with pytest.raises(UserError, match=f"{tmp_path} holds no distilled_"):
        SyntheticSet.load(tmp_path)
    for step in (0, 50, 100):
        synthetic = make()
        synthetic.meta["step"] = step
        synthetic.save(tmp_path / f"distilled_{step}.pt")
    assert number(tmp_path) == number(str(tmp_path)) == 100  # nothing was evaluated: the last
    (tmp_path / "results.json").write_text('{"selected_step": 50}')
    assert number(tmp_path) == 50 and number(tmp_path / "distilled_0.pt") == 0


def test_pixels_undo_the_normalisation():
    synthetic = make()
    pixels = synthetic.pixels()
    assert 0 <= float(pixels.min()) and float(pixels.max()) <= 1
    mean, std = (torch.tensor(synthetic.meta[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.allclose(pixels, (synthetic.images * std + mean).clamp(0, 1), atol=1e-6)


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="synthetic set needs"):
        SyntheticSet(torch.randn(3, 3, 4, 4), torch.randn(2, 4), IdentitySimilarity(3))
    torch.save({"image": torch.zeros(1)}, tmp_path / "d.pt")
    with pytest.raises(UserError, match="'image' must be a tensor of floats with 4 dimensions"):
        SyntheticSet.load(tmp_path / "d.pt")
    with pytest.raises(UserError, match="does not exist"):
        SyntheticSet.load(tmp_path / "absent.pt")
    make().save(tmp_path / "d.pt")
    raw = torch.load(tmp_path / "d.pt", weights_only=True)
    raw["similarity_params"].pop()
    torch.save(raw, tmp_path / "d.pt")
    with pytest.raises(UserError, match="similarity_params"):
        SyntheticSet.load(tmp_path / "d.pt")


@pytest.mark.parametrize("budget, rank", [(100, 10), (200, 5), (500, 20), (500, 40)])
def test_the_published_sets_are_no_larger_than_their_budgets_of_plain_pairs(budget, rank):
    n, pixels, texts = budget - 1, 3 * 224**2, 768
    with torch.device("meta"):  # shapes are all that matters
        synthetic = SyntheticSet(
            torch.empty(n, 3, 224, 224), torch.empty(n, texts), build_similarity("lowrank", n, rank=rank)
        )
    assert (
        synthetic.storage() == pytest.approx(n + (n * (1 + 2 * rank) + 2) / (pixels + texts))
        and n < synthetic.storage() < budget
    )


def test_a_full_similarity_of_499_pairs_is_larger_than_the_budget():
    n = 499
    with torch.device("meta"):
        assert (
            SyntheticSet(
                torch.empty(n, 3, 224, 224), torch.empty(n, 768), build_similarity("full", n)
            ).storage()
            > 500
        )

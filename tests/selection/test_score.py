"""VAS and the second moment against their definitions, and the files that they are read from."""

import numpy as np
import pytest
import torch
from pools import WIDTH, unit

from distill_utils import coreset
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import save_tensors
from distill_utils.selection.score import TILE, SecondMoment, Tiles, vas_scores


def moment_of(rows, most=None):
    tiles, moment = Tiles(), SecondMoment(rows.shape[1], most or len(rows))
    moment.add(tiles, tiles.units(rows)[0])
    return moment


def test_vas_is_the_mean_squared_cosine_to_the_reference_set():
    features, reference = unit(50).astype(np.float64), unit(300, seed=1).astype(np.float64)
    exact = np.square(features @ reference.T).mean(axis=1)
    assert np.allclose(vas_scores(features, reference.T @ reference / 300), exact, rtol=1e-12, atol=0)
    moment = moment_of(reference).value()
    assert np.allclose(vas_scores(features, moment), exact, rtol=1e-6, atol=0)  # moment of float32 tiles
    of_tensors = vas_scores(torch.from_numpy(features), torch.from_numpy(moment))
    assert np.allclose(of_tensors, exact, rtol=1e-6, atol=0)
    assert np.allclose(Tiles().scores(unit(50), moment.astype(np.float32)), exact, rtol=1e-5, atol=0)


def test_the_moment_is_that_of_the_rows_and_a_downdate_that_of_the_rest():
    rows = unit(9001)
    exact, moment = rows.astype(np.float64), moment_of(rows)
    assert moment.rows == 9001 and np.allclose(moment.value(), exact.T @ exact / 9001, rtol=0, atol=1e-13)
    moment.add(Tiles(), rows[:4000], -1)
    assert moment.rows == 5001
    assert np.allclose(moment.value(), moment_of(rows[4000:]).value(), rtol=0, atol=1e-13)


def test_the_moment_does_not_depend_on_the_order_of_tiles_nor_a_score_on_its_neighbours():
    rows = unit(3 * TILE)
    tiles = rows.reshape(3, TILE, WIDTH)
    assert np.array_equal(moment_of(rows).sums, moment_of(tiles[::-1].reshape(-1, WIDTH)).sums)
    moment, order = moment_of(rows).value().astype(np.float32), np.random.default_rng(0).permutation(TILE)
    scores = Tiles().scores(tiles[0], moment)
    assert np.array_equal(scores[order], Tiles().scores(tiles[0][order], moment))
    assert np.array_equal(scores[[7, 1000]], Tiles().scores(tiles[0][[7, 1000]], moment))
    assert np.array_equal(scores[5:], Tiles().scores(rows[5:], moment)[: TILE - 5])


def test_torch_computes_what_numpy_does():
    rows = unit(TILE + 100)
    moment, there = moment_of(rows).value().astype(np.float32), Tiles("cpu:0")  # the way of a GPU
    assert np.allclose(there.scores(rows, moment), Tiles().scores(rows, moment), rtol=1e-5, atol=0)
    assert np.allclose(there.product(rows), Tiles().product(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spoil, made_good", [(3.0, True), (np.nan, False), (np.inf, False), (0.0, False)])
def test_vectors_that_are_not_unit_are_bad_or_made_so(spoil, made_good):
    rows = unit(10)
    with np.errstate(invalid="ignore"):
        rows[4] *= spoil
    vectors, _, good = Tiles().units(rows)
    assert np.flatnonzero(~good).tolist() == [4] and not vectors[4].any()
    vectors, _, good = Tiles(normalise=True).units(rows)
    assert good[4] == made_good
    assert np.allclose(vectors[4], unit(10)[4] if made_good else 0, atol=1e-7)


def moment_command(out, *flags):
    return coreset.main(["moment", "--out", str(out), "--device", "cpu", *map(str, flags)])


def test_the_moment_command_reads_every_kind_of_file(made, tmp_path, capsys):
    rows = unit(60, seed=7)
    np.save(tmp_path / "a.npy", rows[:10])
    np.savez(tmp_path / "b.npz", image=rows[10:20])
    save_tensors(tmp_path / "c.pt", torch.from_numpy(rows[20:30]))
    for n in (3, 4, 5):  # as DataComp has the embeddings of ImageNet, in_1k_clip_vit_l14_{0..4}.pt
        part = torch.from_numpy(rows[10 * n : 10 * (n + 1)])
        save_tensors(tmp_path / f"in1k_{n}.pt", {"image_features": part, "labels": torch.arange(10)})
    files = [tmp_path / name for name in ("a.npy", "b.npz", "c.pt", "in1k_3.pt", "in1k_4.pt", "in1k_5.pt")]
    value = moment_command(tmp_path / "out.npy", "--features", *files, "--feature_member", "image")
    exact = rows.astype(np.float64)
    assert np.allclose(np.load(tmp_path / "out.npy"), exact.T @ exact / 60, rtol=0, atol=1e-13)
    assert value.shape == (WIDTH, WIDTH)
    moment_command(tmp_path / "pool.npy", "--metadata_dir", made.folder)
    exact = made.features.astype(np.float64)
    assert np.allclose(np.load(tmp_path / "pool.npy"), exact.T @ exact / 9200, rtol=0, atol=1e-13)
    assert "9,200 embeddings of width 16" in capsys.readouterr().out


def test_a_dict_without_features_is_refused(tmp_path):
    save_tensors(tmp_path / "labels.pt", {"labels": torch.arange(3)})
    with pytest.raises(UserError, match="labels.pt does not hold floating point numbers"):
        moment_command(tmp_path / "out.npy", "--features", tmp_path / "labels.pt")


@pytest.mark.parametrize("drop", [False, True])
def test_bad_embeddings_are_named_or_left_out_of_a_moment(drop, tmp_path):
    rows = unit(3000, seed=7)
    rows[2500] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    flags = ["--features", tmp_path / "rows.npy", "--bad_rows", "drop" if drop else "refuse"]
    if not drop:
        with pytest.raises(UserError, match="rows.npy: row 2500 has an embedding of the norm nan"):
            moment_command(tmp_path / "out.npy", *flags)
        return
    exact = np.delete(rows, 2500, axis=0).astype(np.float64)
    assert np.allclose(
        moment_command(tmp_path / "out.npy", *flags), exact.T @ exact / 2999, rtol=0, atol=1e-13
    )
    assert '"dropped": 1' in (tmp_path / "out.json").read_text()


@pytest.mark.parametrize("out", ["rows.npy", "link.npy", "other.json", "other"])
def test_a_moment_overwrites_nothing_that_it_reads(out, tmp_path):
    np.save(tmp_path / "rows.npy", unit(30))
    (tmp_path / "link.npy").symlink_to(tmp_path / "rows.npy")
    before = (tmp_path / "rows.npy").read_bytes()
    with pytest.raises(UserError, match="--out .* (would overwrite|must end in .npy)"):
        moment_command(tmp_path / out, "--features", tmp_path / "rows.npy")
    assert (tmp_path / "rows.npy").read_bytes() == before and len(list(tmp_path.iterdir())) == 2

"""VAS against its slow twins, and the commands on pools written by the documented format."""

import json
import math
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from commands import Forker

from distill_utils import coreset
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import save_tensors
from distill_utils.selection import pool, vas

WIDTH = 16


def unit(rows, width=WIDTH, seed=0):
    """Unit vectors with a mean and a decaying spectrum, as CLIP's embeddings have, float32."""
    numbers = np.random.default_rng(seed)
    vectors = (
        numbers.normal(size=(rows, width)) / (1 + np.arange(width)) ** 0.5 + 0.5 * np.ones(width) / width**0.5
    )
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# --- the score and the moment ---


def test_vas_is_the_mean_squared_cosine_to_the_reference_set():
    features, reference = torch.from_numpy(unit(50)).double(), torch.from_numpy(unit(300, seed=1)).double()
    features, reference = (torch.nn.functional.normalize(side) for side in (features, reference))
    moment = vas.second_moment(reference.numpy().astype(np.float64)).value()
    exact = (features @ reference.T).square().mean(dim=1)
    assert torch.allclose(vas.vas_scores(features, reference.T @ reference / 300), exact, rtol=1e-12, atol=0)
    assert torch.allclose(
        vas.vas_scores(features, moment), exact, rtol=1e-6, atol=0
    )  # moment of float32 tiles


def test_the_moment_is_that_of_the_rows_and_a_downdate_that_of_the_rest():
    rows = unit(9001)
    exact = torch.from_numpy(rows.astype(np.float64))
    moment = vas.second_moment(rows)
    assert moment.rows == 9001 and torch.allclose(moment.value(), exact.T @ exact / 9001, rtol=0, atol=1e-13)
    gone = vas.second_moment(rows[:4000], most=9001)
    moment.sums -= gone.sums
    moment.rows -= gone.rows
    assert torch.allclose(moment.value(), vas.second_moment(rows[4000:]).value(), rtol=0, atol=1e-13)


def test_the_moment_does_not_depend_on_the_order_of_tiles_nor_a_score_on_its_neighbours():
    rows = unit(3 * vas.TILE)
    tiles = rows.reshape(3, vas.TILE, WIDTH)
    assert torch.equal(vas.second_moment(rows).sums, vas.second_moment(tiles[::-1].reshape(-1, WIDTH)).sums)
    moment, order = vas.second_moment(rows).value().float(), np.random.default_rng(0).permutation(vas.TILE)
    scorer = vas.Tiles(WIDTH)
    scores = scorer.scores(tiles[0], moment, "")
    assert np.array_equal(scores[order], scorer.scores(tiles[0][order], moment, ""))
    assert np.array_equal(scores[[7, 1000]], scorer.scores(tiles[0][[7, 1000]], moment, ""))


@pytest.mark.parametrize(
    "spoil, sentence",
    [(3.0, "has the norm 3.*--normalize"), (np.nan, "has the norm nan"), (0.0, "has the norm 0; ")],
)
def test_vectors_that_are_not_unit_are_refused_or_made_so(spoil, sentence):
    rows = unit(10)
    rows[4] *= spoil
    with pytest.raises(UserError, match=sentence):
        vas.second_moment(rows)
    if spoil == 3:
        assert torch.allclose(
            vas.second_moment(rows, normalise=True).value(), vas.second_moment(unit(10)).value(), atol=1e-7
        )
    else:
        with pytest.raises(UserError, match="norm"):
            vas.second_moment(rows, normalise=True)


# --- cuts ---


@pytest.mark.parametrize("kind", ["normal", "quantised", "equal", "signed zeros", "wide"])
def test_the_nth_largest_is_that_of_a_sort(kind):
    numbers = np.random.default_rng(0)
    values = {
        "normal": numbers.normal(size=1000),
        "quantised": numbers.normal(size=1000).astype(np.float16).astype(np.float64).round(1),
        "equal": np.full(50, 0.25),
        "signed zeros": np.array([0.0, -0.0, 1.0, -1.0, -0.0]),
        "wide": np.exp(numbers.normal(size=400) * 50) * numbers.choice([-1, 1], 400),
    }[kind]
    descending = np.sort(values)[::-1]
    for n in {1, 2, len(values) // 2, len(values)}:
        value, above = vas.nth_largest(lambda: iter(np.array_split(values, 3)), n)
        assert value == descending[n - 1] and above == (values > value).sum()


def test_a_cut_keeps_exactly_n_and_of_equals_those_with_the_lowest_uid():
    numbers = np.random.default_rng(0)
    uids = pool.sortable(random_uids(600))
    scores = numbers.choice([0.1, 0.2, 0.3], 600)
    blocks = list(zip(np.array_split(scores, 4), np.array_split(uids, 4)))
    for n in (1, 150, 200, 399, 600):
        cut = vas.best(lambda: iter(blocks), n)
        kept = cut.keeps(scores, uids)
        expected = sorted(range(600), key=lambda i: (-scores[i], uids[i]))[:n]
        assert sorted(np.flatnonzero(kept)) == sorted(expected)


# --- VAS-D ---


def shrink_slowly(features, first, target, rounds):
    """VAS-D in float64, everything recomputed every round."""
    alive, features = np.arange(len(features)), features.astype(np.float64)
    moment, chunk = first, math.ceil((len(features) - target) / rounds)
    for _ in range(rounds):
        keep = max(target, len(alive) - chunk)
        scores = ((features[alive] @ moment) * features[alive]).sum(axis=1)
        alive = np.sort(alive[np.argsort(-scores, kind="stable")[:keep]])
        moment = features[alive].T @ features[alive] / len(alive)
    return alive


@pytest.mark.parametrize("rounds", [1, 2, 7, 40])
@pytest.mark.parametrize("bound", [True, False])
def test_vas_d_is_the_slow_one(rounds, bound):
    features = unit(5000)
    moment = vas.second_moment(unit(9000, seed=2)).value()  # the pool before its CLIP cut: another set
    scored = []
    left = vas.shrink(
        features,
        np.arange(5000),
        moment,
        3000,
        rounds,
        bound=bound,
        told=lambda number, again, left: scored.append((again, left)),
    )
    assert np.array_equal(left, shrink_slowly(features, moment.numpy(), 3000, rounds))
    assert len(scored) == rounds and scored[-1][1] == 3000
    if bound and rounds == 40:
        assert sum(again for again, _ in scored) < 0.7 * sum(left for _, left in scored)


def test_one_round_is_the_one_shot_and_more_rounds_than_rows_end_in_time():
    features = unit(300)
    moment = vas.second_moment(features).value()
    once = vas.shrink(features, np.arange(300), moment, 100, 1)
    scores = vas.vas_scores(torch.from_numpy(features).double(), moment)
    assert set(once) == set(scores.argsort(descending=True)[:100].tolist())
    told = []
    left = vas.shrink(features, np.arange(300), moment, 290, 1000, told=lambda *numbers: told.append(numbers))
    assert len(left) == 290 and len(told) == 10
    assert len(vas.shrink(features, np.arange(300), moment, 300, 5)) == 300


def test_rows_that_are_equal_go_by_their_order():
    features = np.repeat(unit(1), 50, axis=0)
    order = np.random.default_rng(0).permutation(50)
    left = vas.shrink(features, order, vas.second_moment(features).value(), 20, 3)
    assert set(order[left]) == set(range(20))


# --- uids and files ---


def random_uids(n, seed=0):
    """UID [n], distinct."""
    numbers = np.random.default_rng(seed).integers(0, 1 << 64, (n, 2), dtype=np.uint64)
    uids = np.empty(n, pool.UID)
    uids["f0"], uids["f1"] = numbers.T
    return uids


def as_hex(uids):
    return [f"{int(high):016x}{int(low):016x}" for high, low in uids.tolist()]


def test_uids_with_leading_zeros_and_large_ones_survive():
    texts = [
        "0" * 32,
        "0" * 31 + "1",
        "f" * 32,
        "8" + "0" * 31,
        "00ff" + "0" * 28,
        "1",
        "ABCDEF",
        "0" * 16 + "8" + "0" * 15,
    ]
    uids = pool.parse_uids(pyarrow.array(texts), "here")
    assert [(int(a) << 64) | int(b) for a, b in uids.tolist()] == [int(text, 16) for text in texts]
    order = np.argsort(pool.sortable(uids), kind="stable")
    assert order.tolist() == sorted(range(len(texts)), key=lambda i: int(texts[i], 16))


@pytest.mark.parametrize("texts", [["0g" * 16], ["0" * 33], [None, "1"], [""], ["é" * 32], ["1 "], [1, 2]])
def test_what_is_no_uid_is_refused(texts):
    with pytest.raises(UserError, match="^here: "):
        pool.parse_uids(pyarrow.array(texts), "here")


class Made:
    """A pool in memory and on disk: uids, CLIP scores quantised as float16 are, embeddings; rows in file
    order.
    """

    def __init__(
        self, folder, sizes=(5000, 3000, 1200), score="clip_l14_similarity_score", member="l14_img", seed=0
    ):
        self.folder, total = folder, sum(sizes)
        folder.mkdir(parents=True)
        self.uids = random_uids(total, seed)
        self.uids["f0"][:5] = range(5)  # leading zeros
        numbers = np.random.default_rng(seed)
        self.scores = numbers.normal(0.2, 0.05, total).astype(np.float16).round(2).astype(np.float32)
        self.features = unit(total, seed=seed).astype(np.float16)
        begin = 0
        for name, size in zip(("b" * 32, "a" * 32, "c" * 32), sizes):
            part = slice(begin, begin + size)
            columns = {"uid": as_hex(self.uids[part]), "text": ["a caption"] * size, score: self.scores[part]}
            pyarrow.parquet.write_table(
                pyarrow.table(columns), folder / f"{name}.parquet", row_group_size=701
            )
            np.savez(folder / f"{name}.npz", **{member: self.features[part], "l14_txt": self.features[part]})
            begin += size

    def static(self, moment, fraction, fraction_vas, rows=None):
        """The chosen uids as numbers, all at once and in float64."""
        rows = np.arange(len(self.uids)) if rows is None else rows
        numbers = [int(text, 16) for text in as_hex(self.uids)]
        by = lambda scores, n, among: sorted(among, key=lambda i: (-scores[i], numbers[i]))[:n]  # noqa: E731
        survivors = by(self.scores, int(len(rows) * fraction), rows)
        features = self.features.astype(np.float64)
        values = ((features @ moment) * features).sum(axis=1)
        return {numbers[i] for i in by(values, int(len(rows) * fraction_vas), survivors)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("datacomp") / "metadata")


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A second moment of other embeddings, and its file."""
    folder = tmp_path_factory.mktemp("prior")
    np.save(folder / "embeddings.npy", unit(2000, seed=5))
    coreset.main(
        [
            "moment",
            "--features",
            f"{folder}/embeddings.npy",
            "--out",
            f"{folder}/prior.npy",
            "--device",
            "cpu",
        ]
    )
    return folder / "prior.npy"


def run(what, folder, out, *flags):
    return coreset.main(
        [what, "--metadata_dir", str(folder), "--save_path", str(out), "--device", "cpu", *map(str, flags)]
    )


def numbers_in(path):
    subset = np.load(path)
    assert (
        subset.dtype == np.dtype("u8,u8") and subset.ndim == 1 and np.array_equal(subset, np.unique(subset))
    )
    return {(int(a) << 64) | int(b) for a, b in subset.tolist()}


def test_static_vas_chooses_what_a_sort_in_memory_does(made, prior, tmp_path, capsys):
    facts = run(
        "vas",
        made.folder,
        tmp_path / "subset.npy",
        "--fraction",
        0.45,
        "--fraction_vas",
        0.3,
        "--target_variance",
        prior,
    )
    assert numbers_in(tmp_path / "subset.npy") == made.static(np.load(prior), 0.45, 0.3)
    assert (
        facts["uids"] == int(9200 * 0.3)
        and facts["clip"]["kept"] == int(9200 * 0.45)
        and facts["repeated_uids"] == 0
    )
    assert json.loads((tmp_path / "subset.json").read_text()) == facts
    told = capsys.readouterr().out
    assert (
        "9,200 pairs in 3 files" in told
        and "4,140 kept (0.4500 of the pool)" in told
        and "2,760 kept (0.3000 of the pool)" in told
    )


def test_the_resharder_finds_every_chosen_uid_once(made, prior, tmp_path):
    run("vas", made.folder, tmp_path / "subset.npy", "--fraction_vas", 0.1, "--target_variance", prior)
    subset = np.load(tmp_path / "subset.npy")
    found = 0
    for text in as_hex(made.uids):
        key = np.array([divmod(int(text, 16), 1 << 64)], np.dtype("u8,u8"))[0]
        found += np.searchsorted(subset, key, "right") - np.searchsorted(subset, key, "left")
    assert found == len(subset) == 920


@pytest.mark.parametrize("kind", ["static", "rounds"])
def test_the_same_bytes_whatever_the_blocks_and_the_order_of_files(kind, made, prior, tmp_path):
    flags = [
        "--fraction",
        0.45,
        "--fraction_vas",
        0.3,
        *(["--target_variance", prior] if kind == "static" else ["--num_iters", 9]),
    ]
    run("vas", made.folder, tmp_path / "one.npy", *flags)
    run("vas", made.folder, tmp_path / "two.npy", *flags, "--block", 100)
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for old, new in zip("abc", "cab"):
        for suffix in ("parquet", "npz"):
            shutil.copy(made.folder / f"{old * 32}.{suffix}", renamed / f"{new * 32}.{suffix}")
    run("vas", renamed, tmp_path / "three.npy", *flags)
    one, two, three = ((tmp_path / f"{name}.npy").read_bytes() for name in ("one", "two", "three"))
    assert one == two == three


def test_vas_d_on_a_pool_is_the_slow_one(made, tmp_path, capsys):
    facts = run(
        "vas",
        made.folder,
        tmp_path / "subset.npy",
        "--fraction",
        0.45,
        "--fraction_vas",
        0.3,
        "--num_iters",
        5,
    )
    features = made.features.astype(np.float64)
    numbers = [int(text, 16) for text in as_hex(made.uids)]
    survivors = sorted(sorted(range(9200), key=lambda i: (-made.scores[i], numbers[i]))[:4140])
    left = shrink_slowly(made.features[survivors], features.T @ features / 9200, 2760, 5)
    assert numbers_in(tmp_path / "subset.npy") == {numbers[survivors[i]] for i in left}
    assert facts["vas"]["rounds"] == 5 and "after 5 rounds" in capsys.readouterr().out
    run(
        "vas_d",
        made.folder,
        tmp_path / "again.npy",
        "--fraction",
        0.45,
        "--fraction_vas",
        0.3,
        "--num_iters",
        5,
    )
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "subset.npy").read_bytes()


def test_thresholds_and_a_given_subset(made, prior, tmp_path):
    numbers = np.array([int(text, 16) for text in as_hex(made.uids)], object)
    features = made.features.astype(np.float64)
    values = ((features @ np.load(prior)) * features).sum(axis=1)
    limit = float(np.sort(values)[-2000]) + 1e-6
    run(
        "vas",
        made.folder,
        tmp_path / "above.npy",
        "--threshold",
        0.2,
        "--threshold_vas",
        limit,
        "--target_variance",
        prior,
    )
    assert numbers_in(tmp_path / "above.npy") == set(numbers[(made.scores >= 0.2) & (values >= limit)])

    mine = np.sort(np.random.default_rng(0).choice(9200, 4000, replace=False))
    pool.write_subset(tmp_path / "given.npy", made.uids[mine])
    flags = [
        "--fraction",
        0.5,
        "--fraction_vas",
        0.25,
        "--target_variance",
        prior,
        "--given_uids_path",
        tmp_path / "given.npy",
    ]
    facts = run("vas", made.folder, tmp_path / "of_given.npy", *flags)
    assert facts["pool"] == 4000 and numbers_in(tmp_path / "of_given.npy") == made.static(
        np.load(prior), 0.5, 0.25, mine
    )


def test_all_scores_equal_gives_exactly_n_twice_the_same(prior, tmp_path):
    equal = Made(tmp_path / "equal", sizes=(400, 300, 200))
    for file in (tmp_path / "equal").glob("*.npz"):
        rows = len(np.load(file)["l14_img"])
        np.savez(file, l14_img=np.repeat(unit(1).astype(np.float16), rows, axis=0))
    flags = ["--fraction", 0.5, "--fraction_vas", 0.2, "--target_variance", prior]
    for name in ("one", "two"):
        assert run("vas", equal.folder, tmp_path / f"{name}.npy", *flags)["uids"] == 180
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_other_names_of_columns_and_members(prior, tmp_path):
    other = Made(
        tmp_path / "cc12m",
        sizes=(50, 40, 30),
        score="oai-clip-vit-l14-score",
        member="oai-clip-vit-l14-image",
    )
    names = ["--score_column", "oai-clip-vit-l14-score", "--feature_member", "oai-clip-vit-l14-image"]
    run(
        "vas",
        other.folder,
        tmp_path / "subset.npy",
        "--fraction",
        0.5,
        "--fraction_vas",
        0.25,
        "--target_variance",
        prior,
        *names,
    )
    assert numbers_in(tmp_path / "subset.npy") == other.static(np.load(prior), 0.5, 0.25)


def test_the_moment_command_reads_every_kind_of_file(made, tmp_path, capsys):
    rows = unit(30, seed=7)
    np.save(tmp_path / "a.npy", rows[:10])
    np.savez(tmp_path / "b.npz", image=rows[10:20])
    save_tensors(tmp_path / "c.pt", torch.from_numpy(rows[20:]))
    files = [str(tmp_path / name) for name in ("a.npy", "b.npz", "c.pt")]
    value = coreset.main(
        [
            "moment",
            "--features",
            *files,
            "--feature_member",
            "image",
            "--out",
            f"{tmp_path}/out.npy",
            "--device",
            "cpu",
        ]
    )
    exact = rows.astype(np.float64)
    assert np.allclose(
        np.load(tmp_path / "out.npy"), exact.T @ exact / 30, rtol=0, atol=1e-13
    ) and value.shape == (WIDTH, WIDTH)
    coreset.main(
        ["moment", "--metadata_dir", str(made.folder), "--out", f"{tmp_path}/pool.npy", "--device", "cpu"]
    )
    exact = made.features.astype(np.float64)
    assert np.allclose(np.load(tmp_path / "pool.npy"), exact.T @ exact / 9200, rtol=0, atol=1e-13)
    assert "9,200 embeddings of width 16" in capsys.readouterr().out


# --- validate ---


def test_validate_takes_what_the_resharder_takes(made, tmp_path, capsys):
    pool.write_subset(tmp_path / "good.npy", made.uids[::3])
    assert coreset.main(["validate", f"{tmp_path}/good.npy", "--metadata_dir", str(made.folder)]) == 3067
    assert "each once in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fault",
    [
        "unsorted",
        "renamed",
        "repeated",
        "two-dimensional",
        "pickle",
        "empty",
        "not there",
        "text",
        "foreign",
        "edited",
    ],
)
def test_validate_refuses_what_it_does_not(fault, made, tmp_path):
    good = np.sort(made.uids[:100])
    path = tmp_path / "subset.npy"
    values = {
        "unsorted": good[::-1],
        "renamed": good.astype([("high", "u8"), ("low", "u8")]),
        "repeated": np.sort(np.concatenate([good, good[:1]])),
        "two-dimensional": np.column_stack([good["f0"], good["f1"]]),
        "pickle": np.array([good, "x"], object),
        "empty": good[:0],
        "foreign": np.sort(np.concatenate([good, random_uids(1, seed=9)])),
        "edited": good[:-1],
    }
    if fault == "text":
        path.write_text("uids")
    elif fault != "not there":
        np.save(path, values[fault])
    if fault == "edited":
        pool.write_subset(path, good)
        digest = vas._digest(np.load(path))
        (tmp_path / "subset.json").write_text(json.dumps({"sha256": digest}))
        np.save(path, values[fault])
    with pytest.raises(UserError) as error:
        coreset.main(["validate", str(path), "--metadata_dir", str(made.folder)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# --- faults of the pool and of flags ---


def spoiled(folder, fault):
    parquet, npz = folder / f"{'a' * 32}.parquet", folder / f"{'a' * 32}.npz"
    table, arrays = pyarrow.parquet.read_table(parquet), dict(np.load(npz))
    if fault == "unequal rows":
        arrays["l14_img"] = arrays["l14_img"][:-1]
    elif fault == "missing member":
        del arrays["l14_img"]
    elif fault == "missing column":
        table = table.drop_columns(["uid"])
    elif fault == "bad hex":
        table = table.set_column(0, "uid", pyarrow.array(["xyz", *table["uid"].to_pylist()[1:]]))
    elif fault == "NaN features":
        arrays["l14_img"][3] = np.nan
    elif fault == "not unit length":
        arrays["l14_img"][3] *= 2
    elif fault == "NaN score":
        table = table.set_column(2, "clip_l14_similarity_score", pyarrow.array([np.nan] * len(table)))
    elif fault == "text score":
        table = table.set_column(2, "clip_l14_similarity_score", pyarrow.array(["high"] * len(table)))
    elif fault == "another width":
        arrays["l14_img"] = arrays["l14_img"][:, :8]
    elif fault == "whole numbers":
        arrays["l14_img"] = arrays["l14_img"].astype(np.int64)
    pyarrow.parquet.write_table(table, parquet)
    np.savez(npz, **arrays)
    if fault == "no npz":
        npz.unlink()
    elif fault == "broken npz":
        npz.write_bytes(npz.read_bytes()[:2000])
    elif fault == "flipped bits":
        data = bytearray(npz.read_bytes())
        data[1000] ^= 4
        npz.write_bytes(data)
    elif fault == "broken parquet":
        parquet.write_bytes(parquet.read_bytes()[:-9])


@pytest.mark.parametrize(
    "fault",
    "unequal rows|missing member|missing column|bad hex|NaN features|not unit length|NaN score|text score|another width|whole numbers|no npz|"
    "broken npz|flipped bits|broken parquet".split("|"),
)
def test_a_faulty_pool_gets_one_sentence_and_finished_work_stays(fault, prior, tmp_path):
    Made(tmp_path / "pool", sizes=(60, 50, 40))
    spoiled(tmp_path / "pool", fault)
    flags = ["--fraction", 0.5, "--fraction_vas", 0.2, "--target_variance", prior]
    with pytest.raises(UserError) as error:
        run("vas", tmp_path / "pool", tmp_path / "subset.npy", *flags)
    assert "a" * 32 in str(error.value) and "\n" not in str(error.value), error.value
    assert not (tmp_path / "subset.npy").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--fraction", "1.5"], "--fraction"),
        (["--fraction", "-1"], "--fraction"),
        (["--fraction_vas", "0"], "--fraction_vas"),
        (["--fraction", "0.2", "--fraction_vas", "0.3"], "both fractions are of the pool"),
        (["--threshold", "9", "--fraction_vas", "0.3"], "nothing is left"),
        (["--threshold_vas", "2"], "--threshold_vas 2"),
        (["--fraction_vas", "0.3", "--num_iters", "3"], "--num_iters belongs to VAS-D"),
        (["--fraction_vas", "0.00001"], "is none"),
        ([], "how much to keep"),
        (["--fraction_vas", "0.3", "--given_uids_path", "nowhere.npy"], "nowhere.npy"),
        (["--fraction_vas", "0.3", "--arch", "b32"], "b32_img"),
    ],
)
def test_flags_that_make_no_sense(flags, sentence, made, prior, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run("vas", made.folder, tmp_path / "subset.npy", "--target_variance", prior, *flags)


def test_a_prior_of_another_kind_is_refused(made, prior, tmp_path):
    for name, value in {
        "narrow": np.eye(8),
        "skew": np.triu(np.ones((WIDTH, WIDTH))),
        "nan": np.full((WIDTH, WIDTH), np.nan),
        "int": np.eye(WIDTH, dtype=int),
    }.items():
        np.save(tmp_path / f"{name}.npy", value)
        with pytest.raises(UserError, match=name):
            run(
                "vas",
                made.folder,
                tmp_path / "subset.npy",
                "--fraction_vas",
                0.3,
                "--target_variance",
                tmp_path / f"{name}.npy",
            )
    with pytest.raises(UserError, match="does not exist"):
        run(
            "vas",
            made.folder,
            tmp_path / "subset.npy",
            "--fraction_vas",
            0.3,
            "--target_variance",
            tmp_path / "nowhere.pt",
        )
    with pytest.raises(UserError, match="--fraction_vas"):
        run("vas", made.folder, tmp_path / "subset.npy", "--threshold_vas", 0.3)


# --- killed, divided, out of disk ---


@pytest.fixture(scope="module")
def forker():
    forker = Forker()
    yield forker
    forker.close()


@pytest.mark.parametrize("kind", ["static", "rounds"])
def test_killed_and_started_again_it_gives_the_same_bytes(kind, forker, made, prior, tmp_path):
    flags = [
        "--fraction",
        0.45,
        "--fraction_vas",
        0.3,
        *(["--target_variance", prior] if kind == "static" else ["--num_iters", 4]),
    ]
    run("vas", made.folder, tmp_path / "undisturbed.npy", *flags)
    argv = [
        "vas",
        "--metadata_dir",
        made.folder,
        "--save_path",
        tmp_path / "subset.npy",
        "--device",
        "cpu",
        *flags,
    ]
    for call in (2, 1):  # while the second file's work is renamed, and at the first one of what is left
        assert forker.run("distill_utils.coreset", argv, tmp_path, kill=["os.replace", call]) == -9
    assert not (tmp_path / "subset.npy").exists()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "subset.npy.parts").glob("*/?*.npy")}
    assert len(finished) == 1
    assert forker.run("distill_utils.coreset", argv, tmp_path) == 0, (tmp_path / "output.txt").read_text()
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "undisturbed.npy").read_bytes()
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert "1 of 3 files are finished already" in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize("kind", ["static", "rounds", "moment"])
def test_two_processes_give_the_same_bytes_as_one(kind, forker, made, prior, tmp_path):
    flags = {"static": ["--target_variance", prior], "rounds": ["--num_iters", 4], "moment": []}[kind]
    if kind == "moment":
        argv = lambda name: ["moment", "--metadata_dir", made.folder, "--out", tmp_path / name]  # noqa: E731
    else:
        argv = lambda name: [
            "vas",
            "--metadata_dir",
            made.folder,
            "--save_path",
            tmp_path / name,
            "--fraction",
            0.45,
            "--fraction_vas",
            0.3,
            *flags,
        ]  # noqa: E731
    coreset.main([*map(str, argv("one.npy")), "--device", "cpu"])
    assert forker.together("distill_utils.coreset", [*argv("two.npy"), "--device", "cpu"], tmp_path) == [
        0,
        0,
    ], (tmp_path / "output.txt").read_text()
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()


def test_a_full_disk_gets_a_sentence_and_finished_work_stays(forker, made, prior, tmp_path):
    argv = [
        "vas",
        "--metadata_dir",
        made.folder,
        "--save_path",
        tmp_path / "subset.npy",
        "--device",
        "cpu",
        "--fraction_vas",
        0.3,
    ]
    static = [*argv, "--target_variance", prior]
    assert (
        forker.run("distill_utils.coreset", static, tmp_path, limit=80_000) == 2
    )  # the second file's part is 100 kB
    assert "cannot be written" in (tmp_path / "output.txt").read_text()
    assert len(list((tmp_path / "subset.npy.parts").glob("*/*.npy"))) == 1 and not list(
        tmp_path.glob("**/*.tmp")
    )
    assert forker.run("distill_utils.coreset", [*argv, "--num_iters", 2], tmp_path, limit=80_000) == 2
    assert "cannot be given its" in (tmp_path / "output.txt").read_text()
    assert forker.run("distill_utils.coreset", static, tmp_path) == 0

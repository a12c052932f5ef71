"""Subsets of a pool against the same done in memory, whatever divides the work."""

import json
import shutil

import numpy as np
import pytest
from pools import Made, as_hex, numbers_in, run, shrink_slowly, unit

from distill_utils import coreset
from distill_utils.selection import subset
from distill_utils.selection.oracles import vas_in_memory


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


def test_static_vas_gives_the_bytes_of_its_slow_twin(made, prior, tmp_path):
    flags = ["--fraction", 0.45, "--fraction_vas", 0.3, "--target_variance", prior]
    run("vas", made.folder, tmp_path / "subset.npy", *flags)
    np.save(tmp_path / "slow.npy", vas_in_memory(made.folder, np.load(prior), 0.45, 0.3))
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "slow.npy").read_bytes()


def test_the_sidecar_says_where_the_subset_comes_from(made, prior, tmp_path):
    facts = run("vas", made.folder, tmp_path / "a.npy", "--fraction_vas", 0.3, "--target_variance", prior)
    assert facts["metadata_dir"] == str(made.folder) and facts["files"] == 3
    assert facts["device"].startswith("cpu") and facts["git_commit"] and facts["numpy"] == np.__version__
    assert facts["bad_rows"] == {"dropped": 0, "first": []}
    assert facts["clip"] is None and facts["pool"] == 9200


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
    subset.write_subset(tmp_path / "given.npy", subset.sortable(made.uids[mine]))
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


@pytest.mark.parametrize("kind", ["static", "rounds", "moment"])
def test_two_processes_give_the_same_bytes_as_one(kind, forker, made, prior, tmp_path):
    cuts = ["--fraction", 0.45, "--fraction_vas", 0.3]
    command, out, *flags = {
        "static": ["vas", "--save_path", *cuts, "--target_variance", prior],
        "rounds": ["vas", "--save_path", *cuts, "--num_iters", 4],
        "moment": ["moment", "--out"],
    }[kind]

    def argv(name):
        where = ["--metadata_dir", made.folder, out, tmp_path / name, "--device", "cpu"]
        return [str(word) for word in (command, *where, *flags)]

    coreset.main(argv("one.npy"))
    statuses = forker.together("distill_utils.coreset", argv("two.npy"), tmp_path)
    assert statuses == [0, 0], (tmp_path / "output.txt").read_text()
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "two.npy").read_bytes()

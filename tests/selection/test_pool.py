"""What can be wrong with a pool and with flags, each in one sentence; pools that are far away."""

import json
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from commands import ROOT
from pools import WIDTH, Made, run

from distill_utils.runs.errors import UserError
from distill_utils.selection.pool import Pool


def spoiled(folder, fault):
    parquet, npz = folder / f"{'a' * 32}.parquet", folder / f"{'a' * 32}.npz"
    table, arrays = pyarrow.parquet.read_table(parquet), dict(np.load(npz))
    uids = table["uid"].to_pylist()
    if fault == "unequal rows":
        arrays["l14_img"] = arrays["l14_img"][:-1]
    elif fault == "missing member":
        del arrays["l14_img"]
    elif fault == "column twice":
        table = table.append_column("uid", table["uid"])
    elif fault == "missing column":
        table = table.drop_columns(["uid"])
    elif fault == "bad hex":
        table = table.set_column(0, "uid", pyarrow.array([*uids[:3], "xyz", *uids[4:]]))
    elif fault == "NaN features":
        arrays["l14_img"][3] = np.nan
    elif fault == "not unit length":
        arrays["l14_img"][3] *= 2
    elif fault == "NaN score":
        scores = table["clip_l14_similarity_score"].to_numpy().copy()
        scores[3] = np.nan
        table = table.set_column(2, "clip_l14_similarity_score", pyarrow.array(scores))
    elif fault in ("null score", "null uid"):
        n = 2 if fault == "null score" else 0
        values = [None if row == 3 else value for row, value in enumerate(table.column(n).to_pylist())]
        table = table.set_column(n, table.column_names[n], pyarrow.array(values, table.column(n).type))
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
    "unequal rows|column twice|missing member|missing column|bad hex|NaN features|not unit length|NaN score|"
    "text score|another width|whole numbers|no npz|broken npz|flipped bits|broken parquet".split("|"),
)
def test_a_faulty_pool_gets_one_sentence_and_finished_work_stays(fault, prior, tmp_path):
    Made(tmp_path / "pool", sizes=(60, 50, 40))
    spoiled(tmp_path / "pool", fault)
    flags = ["--fraction", 0.5, "--fraction_vas", 0.2, "--target_variance", prior]
    with pytest.raises(UserError) as error:
        run("vas", tmp_path / "pool", tmp_path / "subset.npy", *flags)
    assert "a" * 32 in str(error.value) and "\n" not in str(error.value), error.value
    assert not (tmp_path / "subset.npy").exists()


# --- rows that are bad ---


@pytest.mark.parametrize("kind", ["static", "rounds"])
@pytest.mark.parametrize(
    "fault", ["NaN features", "not unit length", "NaN score", "null score", "null uid", "bad hex"]
)
def test_bad_rows_are_named_or_left_out_as_if_they_were_not_there(fault, kind, prior, tmp_path):
    Made(tmp_path / "pool", sizes=(600, 500, 400))
    spoiled(tmp_path / "pool", fault)
    shutil.copytree(tmp_path / "pool", tmp_path / "clean")
    file = tmp_path / "clean" / f"{'a' * 32}"
    table, arrays = pyarrow.parquet.read_table(f"{file}.parquet"), dict(np.load(f"{file}.npz"))
    rest = [row for row in range(500) if row != 3]
    pyarrow.parquet.write_table(table.take(rest), f"{file}.parquet")
    np.savez(f"{file}.npz", **{name: array[rest] for name, array in arrays.items()})
    flags = ["--fraction", 0.5, "--fraction_vas", 0.2]
    flags += ["--target_variance", prior] if kind == "static" else ["--num_iters", 3]
    with pytest.raises(UserError, match=f"{'a' * 32}.*: row 3 has "):
        run("vas", tmp_path / "pool", tmp_path / "refused.npy", *flags)
    facts = run("vas", tmp_path / "pool", tmp_path / "dropped.npy", *flags, "--bad_rows", "drop")
    run("vas", tmp_path / "clean", tmp_path / "clean.npy", *flags)
    assert (tmp_path / "dropped.npy").read_bytes() == (tmp_path / "clean.npy").read_bytes()
    assert facts["pool"] == 1499 and facts["bad_rows"]["dropped"] == 1
    (named,) = facts["bad_rows"]["first"]
    assert "a" * 32 in named and "row 3 has" in named
    assert json.loads((tmp_path / "dropped.json").read_text())["bad_rows"] == facts["bad_rows"]


# --- flags ---


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


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--fraction_vas", "0.3"], "in --num_iters rounds: give both"),
        (["--num_iters", "3"], "in --num_iters rounds: give both"),
        (
            ["--fraction_vas", "0.3", "--num_iters", "3", "--threshold_vas", "0.1"],
            "--fraction_vas or --threshold_vas",
        ),
        (["--num_iters", "3", "--threshold_vas", "0.1"], "it has no --threshold_vas"),
        (
            ["--fraction_vas", "0.3", "--num_iters", "3", "--fraction", "1", "--threshold", "0"],
            "--fraction or --thr",
        ),
        (["--fraction_vas", "0.3", "--num_iters", "3", "--threshold", "nan"], "--threshold"),
        (["--fraction_vas", "0.3", "--num_iters", "3", "--threshold", "-inf"], "--threshold"),
    ],
)
def test_flags_that_contradict_each_other(flags, sentence, made, tmp_path):
    with pytest.raises(UserError, match=sentence):
        run("vas", made.folder, tmp_path / "subset.npy", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["prior.npy", "given.npy", "link.npy", "subset.json", "subset"])
def test_a_subset_overwrites_nothing_that_is_read(out, made, prior, tmp_path):
    shutil.copy(prior, tmp_path / "prior.npy")
    (tmp_path / "link.npy").symlink_to(tmp_path / "prior.npy")
    np.save(tmp_path / "given.npy", np.sort(made.uids[:5000]))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    flags = ["--fraction_vas", 0.1, "--target_variance", tmp_path / "prior.npy"]
    with pytest.raises(UserError, match="--save_path .* (would overwrite|must end in .npy)"):
        run("vas", made.folder, tmp_path / out, *flags, "--given_uids_path", tmp_path / "given.npy")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_sidecar_overwrites_nothing_that_is_read(made, prior, tmp_path):
    shutil.copy(prior, tmp_path / "prior.json")
    (tmp_path / "x.json").symlink_to(tmp_path / "prior.json")
    flags = ["--fraction_vas", 0.1, "--target_variance", tmp_path / "prior.json"]
    with pytest.raises(UserError, match="would overwrite"):
        run("vas", made.folder, tmp_path / "x.npy", *flags)


# --- far away ---


@pytest.mark.parametrize("protocol", ["memory", "file"])
@pytest.mark.parametrize("kind", ["static", "rounds"])
def test_a_pool_may_lie_anywhere_that_fsspec_reaches(protocol, kind, made, prior, tmp_path):
    url = f"memory://{tmp_path.name}/pool/" if protocol == "memory" else f"file://{tmp_path}/pool"
    system, root = fsspec.url_to_fs(url)
    system.mkdirs(root, exist_ok=True)
    for file in made.folder.iterdir():
        system.put_file(str(file), f"{root}/{file.name}")
    flags = ["--fraction", 0.45, "--fraction_vas", 0.3]
    flags += ["--target_variance", prior] if kind == "static" else ["--num_iters", 4]
    facts = run("vas", url, tmp_path / "far.npy", *flags)
    run("vas", made.folder, tmp_path / "near.npy", *flags)
    assert (tmp_path / "far.npy").read_bytes() == (tmp_path / "near.npy").read_bytes()
    assert facts["metadata_dir"] == url


@pytest.mark.parametrize(
    "url, sentence",
    [
        ("memory://nowhere", "memory://nowhere does not exist"),
        ("nonsense://bucket/pool", "nonsense://bucket/pool cannot be read: Protocol not known"),
        ("s3://bucket/pool", "s3://bucket/pool cannot be read: Install s3fs"),
    ],
)
def test_a_far_pool_that_cannot_be_reached_gets_a_sentence(url, sentence):
    if url.startswith("s3"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is here")
    with pytest.raises(UserError, match=sentence):
        Pool(url, None, "l14_img")


# --- what is imported ---


def test_a_command_on_a_pool_imports_what_it_uses(made, prior, tmp_path):
    flags = (
        f"--metadata_dir {made.folder} --save_path {tmp_path}/a.npy --fraction_vas .3 --device cpu".split()
    )
    program = (
        "import sys; from distill_utils import coreset; coreset.main(sys.argv[1:]); "
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    for argv in (
        ["vas", *flags, "--target_variance", str(prior)],
        ["vas", *flags, "--num_iters", "2"],
        ["validate", f"{tmp_path}/a.npy", "--metadata_dir", str(made.folder)],
        ["moment", "--metadata_dir", str(made.folder), "--out", f"{tmp_path}/b.npy", "--device", "cpu"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True
        )
        imported = set(done.stdout.splitlines()[-1].split())
        assert not imported & {"torch", "torchvision", "timm", "transformers", "scipy", "sklearn", "PIL"}

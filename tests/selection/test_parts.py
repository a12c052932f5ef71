"""Killed, interrupted, damaged or out of disk: the same command goes on and gives the same bytes."""

import shutil

import numpy as np
import pytest
from pools import Made, run

from distill_utils import coreset
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked
from distill_utils.runs.signals import Interrupted
from distill_utils.selection import filtering, parts, pool, rounds, subset
from distill_utils.selection.filtering import Filter

FIRST = "a" * 32


def flags(kind, prior, number=4):
    how = ["--target_variance", prior] if kind == "static" else ["--num_iters", number]
    return ["--fraction", 0.45, "--fraction_vas", 0.3, *how]


@pytest.fixture
def read(monkeypatch):
    """The names of the .npz whose features were read."""
    names, original = [], pool.Pool.feature_blocks

    def watched(self, file):
        names.append(file.name)
        return original(self, file)

    monkeypatch.setattr(pool.Pool, "feature_blocks", watched)
    return names


def kept_parts(made, prior, folder, kind):
    """The bytes of a subset, beside which its parts are left."""
    run("vas", made.folder, folder / "subset.npy", *flags(kind, prior), "--keep_parts")
    content = (folder / "subset.npy").read_bytes()
    (folder / "subset.npy").unlink()
    return content


@pytest.mark.parametrize("kind", ["static", "rounds"])
def test_killed_and_started_again_it_gives_the_same_bytes(kind, forker, made, prior, tmp_path, read):
    run("vas", made.folder, tmp_path / "undisturbed.npy", *flags(kind, prior))
    argv = ["vas", "--metadata_dir", made.folder, "--save_path", tmp_path / "subset.npy", "--device", "cpu"]
    argv += flags(kind, prior)
    for call in (2, 1):  # while the second file's part is renamed, and at the first one of what is left
        assert forker.run("distill_utils.coreset", argv, tmp_path, kill=["os.replace", call]) == -9
    folder = tmp_path / "subset.npy.parts"
    assert not (tmp_path / "subset.npy").exists() and len(list(folder.glob("*.npz"))) == 1
    read.clear()
    coreset.main([str(word) for word in argv])
    assert read == ["b" * 32, "c" * 32]
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "undisturbed.npy").read_bytes()
    assert not folder.exists() and not list(tmp_path.glob("**/*.tmp"))


def test_parts_go_away_unless_they_are_to_be_kept_and_serve_other_fractions(made, prior, tmp_path, read):
    kept_parts(made, prior, tmp_path, "static")
    read.clear()
    run("vas", made.folder, tmp_path / "subset.npy", "--fraction_vas", 0.2, "--target_variance", prior)
    assert not read and not (tmp_path / "subset.npy.parts").exists()
    run("vas", made.folder, tmp_path / "fresh.npy", "--fraction_vas", 0.2, "--target_variance", prior)
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "fresh.npy").read_bytes()


@pytest.mark.parametrize("kind", ["static", "rounds"])
@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty", "another's", "gone", "other code"])
def test_a_part_that_is_not_whole_is_computed_again_with_a_word(
    kind, damage, made, prior, tmp_path, read, capsys, monkeypatch
):
    content = kept_parts(made, prior, tmp_path, kind)
    path = tmp_path / f"subset.npy.parts/{FIRST}.npz"
    (tmp_path / "subset.npy.parts/rounds.state.npz").unlink(missing_ok=True)
    whole, again = path.read_bytes(), [FIRST]
    if damage == "cut off":
        path.write_bytes(whole[:-100])
    elif damage == "flipped":
        path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another's":
        shutil.copy(path.with_name(f"{'b' * 32}.npz"), path)
    elif damage == "gone":
        path.unlink()
    else:
        monkeypatch.setattr(parts, "CODE", ["another"])
        again = [FIRST, "b" * 32, "c" * 32]
    read.clear()
    run("vas", made.folder, tmp_path / "subset.npy", *flags(kind, prior))
    assert read == again and (tmp_path / "subset.npy").read_bytes() == content
    assert (f"{FIRST}.npz is" in capsys.readouterr().out) == (damage != "gone")


@pytest.mark.parametrize("change", ["features", "prior", "normalize"])
def test_parts_of_other_inputs_are_not_believed(change, prior, tmp_path):
    whole = Made(tmp_path / "pool", sizes=(60, 50, 40))
    shutil.copy(prior, tmp_path / "prior.npy")
    run(
        "vas", whole.folder, tmp_path / "subset.npy", *flags("static", tmp_path / "prior.npy"), "--keep_parts"
    )
    more = []
    if change == "features":
        file = whole.folder / f"{FIRST}.npz"
        np.savez(file, l14_img=np.load(file)["l14_img"][::-1])
    elif change == "prior":
        np.save(tmp_path / "prior.npy", np.diag(np.arange(16.0)))
    else:
        more = ["--normalize"]
    for name in ("subset", "fresh"):
        run("vas", whole.folder, tmp_path / f"{name}.npy", *flags("static", tmp_path / "prior.npy"), *more)
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "fresh.npy").read_bytes()


def stop_at(monkeypatch, name, number, error):
    """A function of rounds' NumPy raises at its call `number`; returns the calls so far."""
    calls, original = [], getattr(np.linalg, name)

    def counted(*args):
        calls.append(None)
        if len(calls) == number:
            raise error
        return original(*args)

    monkeypatch.setattr(rounds.np.linalg, name, counted)
    return calls


def test_interrupted_in_round_18_of_20_it_goes_on_at_18(made, prior, tmp_path, capsys, monkeypatch):
    run("vas", made.folder, tmp_path / "undisturbed.npy", *flags("rounds", prior, 20))
    monkeypatch.setattr(filtering, "_SHARE", np.inf)  # saved once, before the first round
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, "eigvalsh", 18, Interrupted(15))
        run("vas", made.folder, tmp_path / "subset.npy", *flags("rounds", prior, 20))
    calls = stop_at(monkeypatch, "eigvalsh", 0, None)
    facts = run("vas", made.folder, tmp_path / "subset.npy", *flags("rounds", prior, 20))
    assert len(calls) == 3 and "goes on after round 17" in capsys.readouterr().out
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "undisturbed.npy").read_bytes()
    assert facts["vas"]["rounds"] == 20 and not (tmp_path / "subset.npy.parts").exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_in_round_18_of_20_it_goes_on_from_what_was_saved(
    damaged, forker, made, prior, tmp_path, capsys
):
    run("vas", made.folder, tmp_path / "undisturbed.npy", *flags("rounds", prior, 20))
    argv = ["vas", "--metadata_dir", made.folder, "--save_path", tmp_path / "subset.npy", "--device", "cpu"]
    argv += flags("rounds", prior, 20)
    assert forker.run("distill_utils.coreset", argv, tmp_path, kill=["numpy.linalg.eigvalsh", 18]) == -9
    state = tmp_path / "subset.npy.parts/rounds.state.npz"
    if damaged:
        state.write_bytes(state.read_bytes()[:-200])
    capsys.readouterr()
    coreset.main([str(word) for word in argv])
    said = capsys.readouterr().out
    assert ("rounds.state.npz is damaged" if damaged else "goes on after round") in said
    assert (tmp_path / "subset.npy").read_bytes() == (tmp_path / "undisturbed.npy").read_bytes()


def test_the_count_is_checked_where_it_is_written(made, tmp_path):
    job = Filter(pool.Pool(made.folder, None, "l14_img"), tmp_path / "subset.npy")
    chosen = subset.sortable(made.uids[:9])
    with pytest.raises(UserError, match="9 uids were chosen where 10 were asked for"):
        job.write(chosen, {"kept": 10}, {})
    assert not list(tmp_path.iterdir())


def test_two_commands_for_one_subset_are_one_too_many(forker, made, prior, tmp_path):
    argv = ["vas", "--metadata_dir", made.folder, "--save_path", tmp_path / "subset.npy", "--device", "cpu"]
    with locked(tmp_path / "subset.npy.parts/lock"):
        assert forker.run("distill_utils.coreset", argv + flags("static", prior), tmp_path) == 2
    assert "is in use" in (tmp_path / "output.txt").read_text()


def test_a_full_disk_gets_a_sentence_and_finished_work_stays(forker, made, prior, tmp_path):
    argv = ["vas", "--metadata_dir", made.folder, "--save_path", tmp_path / "subset.npy", "--device", "cpu"]
    rounds = [*argv, *flags("rounds", prior)]
    assert (
        forker.run("distill_utils.coreset", rounds, tmp_path, limit=60_000) == 2
    )  # the second part is larger
    assert "cannot be written" in (tmp_path / "output.txt").read_text()
    left = [path.name for path in (tmp_path / "subset.npy.parts").iterdir()]
    assert sorted(left) == [f"{FIRST}.npz", "lock"]
    assert forker.run("distill_utils.coreset", rounds, tmp_path) == 0
    assert (tmp_path / "subset.npy").exists()


def test_what_earlier_code_left_stays_and_is_harmless(made, prior, tmp_path):
    old = tmp_path / "subset.npy.parts/51dc80f45a75"
    old.mkdir(parents=True)
    (old / "uids.bin").write_bytes(b"old")
    run("vas", made.folder, tmp_path / "subset.npy", *flags("rounds", prior))
    assert [path.name for path in (tmp_path / "subset.npy.parts").iterdir()] == [old.name]
    assert (old / "uids.bin").read_bytes() == b"old"

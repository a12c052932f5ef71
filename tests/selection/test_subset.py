"""Uids, and the file of them that the resharder takes."""

import json

import numpy as np
import pyarrow
import pytest
from pools import random_uids

from distill_utils import coreset
from distill_utils.runs.errors import UserError
from distill_utils.selection import subset
from distill_utils.selection.parts import digest


def test_uids_with_leading_zeros_and_large_ones_survive():
    texts = ["0" * 32, "0" * 31 + "1", "f" * 32, "8" + "0" * 31, "00ff" + "0" * 28, "1", "ABCDEF"]
    texts.append("0" * 16 + "8" + "0" * 15)
    keys, good = subset.parse_uids(pyarrow.array(texts), "here")
    numbers = [(int(high) << 64) | int(low) for high, low in subset.from_sortable(keys).tolist()]
    assert good.all() and numbers == [int(text, 16) for text in texts]
    assert np.argsort(keys, kind="stable").tolist() == sorted(range(len(texts)), key=numbers.__getitem__)
    sliced, _ = subset.parse_uids(pyarrow.array(texts)[3:6], "here")
    assert np.array_equal(sliced, keys[3:6]) and np.array_equal(
        subset.sortable(subset.from_sortable(keys)), keys
    )


@pytest.mark.parametrize("text", ["0g" * 16, "0" * 33, None, "", "é" * 16, "é" * 32, "1 "])
def test_what_is_no_uid_is_bad_and_the_others_are_not(text):
    keys, good = subset.parse_uids(pyarrow.array(["a1", text, "f" * 32]), "here")
    assert good.tolist() == [True, False, True]
    assert subset.from_sortable(keys)[[0, 2]].tolist() == [(0, 0xA1), ((1 << 64) - 1, (1 << 64) - 1)]


def test_uids_of_another_type_are_refused():
    with pytest.raises(UserError, match="^here: "):
        subset.parse_uids(pyarrow.array([1, 2]), "here")


def test_validate_takes_what_the_resharder_takes(made, tmp_path, capsys):
    subset.write_subset(tmp_path / "good.npy", subset.sortable(made.uids[::3]))
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
        subset.write_subset(path, subset.sortable(good))
        (tmp_path / "subset.json").write_text(json.dumps({"sha256": digest(np.load(path))}))
        np.save(path, values[fault])
    with pytest.raises(UserError) as error:
        coreset.main(["validate", str(path), "--metadata_dir", str(made.folder)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_validate_needs_the_parquet_alone(made, tmp_path):
    for file in made.folder.glob("*.parquet"):
        (tmp_path / file.name).symlink_to(file)
    subset.write_subset(tmp_path / "good.npy", subset.sortable(made.uids[:9]))
    assert coreset.main(["validate", f"{tmp_path}/good.npy", "--metadata_dir", str(tmp_path)]) == 9

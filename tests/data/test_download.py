"""`python -m data.download`: what it fetches, from where and to which place."""

import hashlib

import pytest

from data import download
from data.fetching import Known
from distill_utils.runs.errors import UserError


def test_everything_goes_where_the_loaders_look(server, zipped, tmp_path, monkeypatch, capsys):
    """The command with every thing's own addresses and places, and small files of other contents."""
    files = {}
    for name, thing in download.THINGS.items():
        known = {}
        for file in thing.files:
            inside = file.removesuffix(".zip")
            content = zipped({f"{inside}/1.jpg": b"1", f"{inside}/2.jpg": b"2"}) if thing.images else b'["x"]'
            files[f"/{thing.path}/{file}"] = content
            known[file] = Known(len(content))
        images = thing.images and dict.fromkeys(thing.images, 2)
        monkeypatch.setitem(download.THINGS, name, thing._replace(files=known, images=images))
    server.files = files
    names = ["flickr_ann", "coco_ann", "coco", "bert", "nfnet", "flickr"]
    argv = [*names, "--mirror", server.address]
    monkeypatch.chdir(tmp_path)
    download.main(argv)
    there = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("[!.]*") if file.is_file()}
    data, checkpoints = "distill_utils/data", "distill_utils/checkpoints"
    bert = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors")
    splits = ("train", "val", "test")
    assert there == {
        *(f"{data}/Flickr30k_ann/flickr30k_{split}.json" for split in splits),
        *(f"{data}/COCO_ann/coco_karpathy_{split}.json" for split in splits),
        *(f"{data}/COCO/{split}2014/{n}.jpg" for split in ("train", "val") for n in (1, 2)),
        *(f"{checkpoints}/bert-base-uncased/{file}" for file in bert),
        f"{checkpoints}/nfnet_l0_ra2-45c6688d.pth",
    }
    asked = len(server.asked)
    assert (
        asked == len(files) and f"{data}/Flickr30k/flickr30k-images (0 are there)" in capsys.readouterr().out
    )
    download.main(argv)
    assert len(server.asked) == asked and capsys.readouterr().out.count("is there already") == 14


def test_the_places_can_be_others(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = download.THINGS["nfnet"]
    (name,) = thing.files
    server.files = {f"/hub/{thing.path}/{name}": b"weights"}
    known = {name: Known(digest=f"sha256:{hashlib.sha256(b'weights').hexdigest()[:8]}")}
    monkeypatch.setitem(download.THINGS, "nfnet", thing._replace(files=known))
    download.main(["nfnet", "--mirror", f"{server.address}/hub/", "--checkpoint_dir", "elsewhere"])
    assert (tmp_path / "elsewhere" / name).read_bytes() == b"weights"


def test_images_that_an_archive_lacks_are_missed(server, zipped, tmp_path, monkeypatch):
    thing = download.THINGS["coco"]
    content = zipped({"val2014/1.jpg": b"1"})
    server.files = {"/zips/val2014.zip": content}
    monkeypatch.setitem(
        download.THINGS,
        "coco",
        thing._replace(files={"val2014.zip": Known(len(content))}, images={"val2014": 2}),
    )
    with pytest.raises(UserError, match="val2014 holds 1 images after .*val2014.zip was unpacked, not 2"):
        download.main(["coco", "--data_dir", str(tmp_path), "--mirror", server.address])


@pytest.mark.parametrize(
    "argv, words",
    [
        (["imagenet"], "invalid choice: 'imagenet' .choose from .*'coco'"),
        ([], "are required: NAME"),
        (["bert", "--mirror", "ftp://x"], "begins with http, not 'ftp://x'"),
    ],
)
def test_a_mistake_is_one_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        download.main(argv)

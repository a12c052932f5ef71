"""sh/quickstart_photos.sh on a few photos of one's own: its own commands, in process, with tiny numbers."""

import json
import random
from importlib import import_module

import pytest
from commands import ROOT, sh_commands

from data.captions import clean_caption
from data.toy_scenes import draw_scene, make_example
from distill_utils.runs.errors import UserError

TINY = {
    "buffer.py": "--num_experts 1 --train_epochs 2 --batch_train 4",
    "distill_lors.py": "--mini_batch_size 4 --syn_steps 2 --sim_rank 2 --eval_it 2 --num_eval 1 "
    "--epoch_eval_train 2 --max_start_epoch 1 --lr_img 1 --lr_txt 1 --lr_lr 0.00001",
    "distill_utils.evaluate": "--num_eval 1 --epoch_eval_train 2 --rates 0.1",
    "distill_utils.report": "",
}


def photos(folder, count, seed=0):
    """Scenes with one, two or three captions, in a folder with metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        scene, captions = make_example(seed, "photos", number)
        draw_scene(scene, resolution=32).save(folder / f"{number}.jpg")
        texts = random.Random(number).sample(captions, 1 + number % 3)
        lines += [{"file_name": f"{number}.jpg", "text": texts[0] if len(texts) == 1 else texts}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """The commands of the sh file for a folder, run here with tiny numbers; each program's answer."""
    (tmp_path / "stubs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAIRS", "6")
    monkeypatch.setenv("STEPS", "2")
    small = (
        "--image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert --image_size 32 "
        f"--num_workers 0 --device cpu --checkpoint_dir {tmp_path}/checkpoints"
    ).split()

    def run(folder, programs=TINY):
        _, *commands = sh_commands(
            ROOT / "sh/quickstart_photos.sh", tmp_path / "stubs", str(folder), "cpu", *small
        )
        answers = {}
        for program, arguments in commands:
            if program in programs:
                main = import_module(program.removesuffix(".py")).main
                answers[program] = main([*arguments, *TINY[program].split()])
        return answers

    return run


def test_from_photos_to_a_report(quickstart, tmp_path):
    answers = quickstart(photos(tmp_path / "photos", 20))
    rows = answers["distill_utils.evaluate"]
    assert set(rows) == {"random", "random_same_loss", "distilled", "full"}
    assert all(0 <= row["r_mean"]["mean"] <= 100 for row in rows.values())
    directory = answers["distill_lors.py"]
    assert str(directory) == "logged_files/imagefolder/quickstart_photos"
    nearest = json.loads((directory / "nearest.json").read_text())["captions"]
    said = {near["caption"] for row in nearest for near in row}
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "photos/metadata.jsonl").read_text().splitlines()
    ]
    own = {clean_caption(text) for text in texts for text in (text if isinstance(text, list) else [text])}
    assert len(nearest) == 6 and said <= own
    assert "imagefolder" in (directory / "report.html").read_text()


def test_experts_of_other_photos_are_refused(quickstart, tmp_path):
    """The same captions of photos of other names; the same photos in another folder are the same."""
    for seed, split in enumerate(("train", "val", "test")):
        photos(tmp_path / "photos" / split, 9, seed)
    (folder,) = quickstart(tmp_path / "photos", ["buffer.py"]).values()
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert quickstart(tmp_path / "moved", ["buffer.py"]) == {"buffer.py": folder}
    train = tmp_path / "moved/train"
    (train / "0.jpg").rename(train / "zero.jpg")
    metadata = train / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"0.jpg"', '"zero.jpg"'))
    with pytest.raises(UserError, match="were trained with train_data .* .a hash of the train photos"):
        quickstart(tmp_path / "moved", ["buffer.py"])

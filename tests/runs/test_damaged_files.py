"""Files that are damaged, or lie: a sentence, or the right values; never code, never memory."""

import random
from pathlib import Path

import pytest
import torch
from commands import EXPERTS_FOLDER, toy

from distill_utils import coreset
from distill_utils.distillation.optimizer import outer_optimizer
from distill_utils.distillation.outer_loop import OuterLoop
from distill_utils.distillation.start import other_start
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.matching.objective import TrajectoryMatching
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.synthetic.set import SyntheticSet
from networks.weights import Weights


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


LIES = [
    *(
        7,
        "text",
        [],
        {},
        [[]],
        [[[]]],
        [[[7]]],
        {"momentum": 1},
        {"set": [], "momentum": []},
        torch.zeros(3),
        [torch.zeros(3)],
    ),
    torch.zeros(3, dtype=torch.int64),
    {"image": torch.zeros(2, 3, 4, 4)},
    [[[torch.zeros(2, 2)]]],
    torch.sparse_coo_tensor(size=(1 << 30, 1 << 30)),
    [[[torch.zeros(1).expand(1 << 40)]]],
    {"image": torch.zeros(1).expand(1 << 20, 1 << 20)},
]


def mutations(whole, rng, trap, count):
    """(what was done, bytes or value to save) of `count` damaged versions of a file."""
    for n in range(count):
        data = bytearray(whole)
        kind = n % 4
        if kind == 0:
            yield "cut", bytes(data[: rng.randrange(len(data))])
        elif kind == 1:
            for _ in range(rng.choice((1, 1, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            yield "flipped", bytes(data)
        elif kind == 2:
            start = rng.randrange(len(data))
            data[start : start + rng.randrange(1, 2000)] = rng.randbytes(rng.randrange(0, 2000))
            yield "overwritten", bytes(data)
        else:
            yield "other", rng.choice([Bomb(trap), [Bomb(trap)], {"image": Bomb(trap)}, *LIES])


def test_300_damaged_files_are_refused_in_a_sentence_or_loaded_right(home, tmp_path):
    rng, trap = random.Random(0), tmp_path / "executed"
    run, experts = home / "logged_files/toy/undisturbed", home / "buffers" / EXPERTS_FOLDER

    def load_state(path):
        state, synthetic = other_start(path, "lowrank", 3.0)
        if state is None:
            return None
        steps = dict(
            lr_img=1, lr_txt=1, lr_lr=1, lr_sim=1, momentum_syn=0.5, momentum_lr=0.5, momentum_sim=0.5
        )
        matcher = type("Matcher", (), {"length": None})()
        times = dict(syn_steps=2, mini_batch_size=4, expert_epochs=1, starts=None)
        objective = TrajectoryMatching(matcher, None, **times)
        optimizer = outer_optimizer(synthetic, **steps)
        OuterLoop(synthetic, objective, optimizer, clamp_lr=0.1).load_state(state, path)
        return torch.cat([synthetic.images.detach().flatten(), *(m.flatten() for m in state["momentum"])])

    def load_set(path):
        return torch.cat([value.flatten() for value in SyntheticSet.load(path).tensors()])

    def load_experts(path):
        return torch.cat(
            [
                vector
                for weights in ExpertTrajectories(path.parent).pair(0, Weights(1, 1), 1)
                for vector in weights
            ]
        )

    kinds = {
        "state.pt": (run / "state.pt", load_state),
        "distilled_30.pt": (run / "distilled_30.pt", load_set),
        "img_replay_buffer_0.pt": (experts / "img_replay_buffer_0.pt", load_experts),
    }
    tried = refused = 0
    for name, (source, load) in kinds.items():
        folder = tmp_path / name.removesuffix(".pt")
        folder.mkdir()
        if load is load_experts:
            (folder / "txt_replay_buffer_0.pt").write_bytes((experts / "txt_replay_buffer_0.pt").read_bytes())
        path = folder / name
        path.write_bytes(source.read_bytes())
        right = load(path)
        for what, damaged in mutations(source.read_bytes(), rng, trap, 100):
            path.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save(damaged, path)
            tried += 1
            try:
                found = load(path)
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            else:
                assert what != "other" and torch.equal(found, right), f"{name}, {what}"
    assert tried == 300 and refused > 200 and not trap.exists()
    status = Path("/proc/self/status")
    if status.exists():
        assert (
            int(status.read_text().split("VmHWM:")[1].split()[0]) < 4 << 20
        )  # kB: far from what the liars claim


def test_a_compressed_archive_is_refused(tmp_path):
    import zipfile

    save_tensors(tmp_path / "plain.pt", [torch.zeros(1 << 20)])
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    with pytest.raises(UserError, match="compressed or larger than the file"):
        load_tensors(tmp_path / "bomb.pt")


def test_image_and_annotation_bombs_are_one_sentence(home, tmp_path, monkeypatch):
    from PIL import Image

    from data.karpathy import load_image, read_annotations

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (12, 12)).save(
        tmp_path / "big.png"
    )  # above the limit, below twice the limit: Pillow itself only warns
    with pytest.raises(UserError, match="big.png cannot be read as an image"):
        load_image(tmp_path / "big.png")
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="deep.json is not a JSON file"):
        read_annotations(tmp_path / "deep.json", ("image",))


def test_a_coreset_needs_no_state(home, monkeypatch):
    monkeypatch.chdir(home)
    path = coreset.main(["random", *toy(home), "--num_queries", "2"])
    assert not (path.parent / "state.pt").exists()

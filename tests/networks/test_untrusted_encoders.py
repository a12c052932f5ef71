"""Encoders from folders and files of strangers: no code runs, nothing larger than the file is made."""

import io
import os
import pickle
import subprocess
import sys

import pytest
import torch
from commands import ROOT

from distill_utils.runs.errors import UserError
from networks.image_encoders import build_image_encoder
from networks.text_encoders import build_text_encoder, ensure_toy_bert

CODE = """
from pathlib import Path
Path({trap!r}).touch()
from transformers import BertConfig, BertModel
class Config(BertConfig):
    model_type = "stranger"
class Model(BertModel):
    config_class = Config
"""
CONFIG = """{"model_type": "stranger", "architectures": ["Model"],
    "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}"""
LOAD = (
    "from networks.text_encoders import build_text_encoder\n"
    "build_text_encoder({folder!r}, pretrained=False, checkpoint_dir='none')"
)


@pytest.fixture
def toy_folder(tmp_path):
    return ensure_toy_bert(["a red circle", "two squares"], tmp_path, width=8, layers=1, heads=2)


def test_code_beside_a_text_encoder_never_runs(toy_folder, tmp_path):
    trap = tmp_path / "executed"
    (toy_folder / "config.json").write_text(CONFIG)
    (toy_folder / "code.py").write_text(CODE.format(trap=str(trap)))
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(folder=str(toy_folder))],
        input="y\n" * 5,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert "cannot be loaded" in done.stderr and done.returncode and not trap.exists()
    assert "Do you wish to run the custom code" not in done.stdout


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
@pytest.mark.parametrize("text", ["[]", "7", "{", '{"model_type": 3}', '"text"'])
def test_a_malformed_text_encoder_is_a_sentence_or_works(toy_folder, file, text):
    (toy_folder / file).write_text(text)
    try:
        build_text_encoder(str(toy_folder), pretrained=False, checkpoint_dir="none")
    except UserError as error:
        assert "\n" not in str(error) and str(toy_folder) in str(error)


@pytest.mark.parametrize("legacy", [True, False])
def test_weights_of_either_format_are_read(tmp_path, legacy):
    weights = build_image_encoder("test_nfnet", False, tmp_path).state_dict()
    first = next(iter(weights))
    weights[first] = weights[first] + 1
    torch.save(weights, tmp_path / "test_nfnet.pth", _use_new_zipfile_serialization=not legacy)
    found = build_image_encoder("test_nfnet", True, tmp_path).state_dict()
    assert torch.equal(found[first], weights[first])


class Huge:
    def __reduce__(self):
        return bytearray, (1 << 40,)


def test_weights_that_claim_more_than_the_file_are_refused(toy_folder, tmp_path):
    legacy = io.BytesIO()
    torch.save({"weight": torch.zeros(7)}, legacy, _use_new_zipfile_serialization=False)
    small, large = b"K\x07", b"J" + (1 << 30).to_bytes(4, "little")
    bombs = {
        "claims": legacy.getvalue().replace(small, large),
        "makes": legacy.getvalue()[:0] + pickle.dumps(Huge(), 2) * 5,
        "neither": b"text",
    }
    for what, data in bombs.items():
        (tmp_path / "test_nfnet.pth").write_bytes(data)
        with pytest.raises(UserError, match="test_nfnet.pth cannot be read as tensors"):
            build_image_encoder("test_nfnet", True, tmp_path)
        (toy_folder / "model.safetensors").unlink(missing_ok=True)
        (toy_folder / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(UserError, match="pytorch_model.bin cannot be read as tensors"):
            build_text_encoder(str(toy_folder), checkpoint_dir="none")
        assert what

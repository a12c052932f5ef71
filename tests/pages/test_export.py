"""A set handed over: read back without this project, exact to the bit."""

import json
import subprocess
import sys

import pytest
import torch

from distill_utils import export
from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity

READERS = {
    "safetensors": """
from safetensors.torch import load_file
t = load_file("{out}"); images, texts, similarity = t["images"], t["texts"], t["similarity"]
""",
    "folder": """
from safetensors.torch import load_file
t = load_file("{out}/tensors.safetensors")
images, texts, similarity = t["images"], t["texts"], t["similarity"]
""",
    "parquet": """
import json, numpy, pyarrow.parquet
table = pyarrow.parquet.read_table("{out}")
column = lambda name: torch.tensor(numpy.stack(table[name].to_numpy()))
shape = json.loads(table.schema.metadata[b"image_shape"])
images, texts, similarity = column("image").reshape(-1, *shape), column("text"), column("similarity")
""",
}


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    similarity = build_similarity("lowrank", 5, rank=2)
    with torch.no_grad():
        similarity.right.normal_()
    meta = {
        "dataset": "toy",
        "step": 7,
        "source_captions": [f"source <{n}>" for n in range(5)],
        "loss": "WBCE",
    }
    synthetic = SyntheticSet(torch.randn(5, 3, 8, 6), torch.randn(5, 4), similarity, 0.1, 0.2, meta)
    folder = tmp_path / "run"
    synthetic.save(folder / "distilled_7.pt")
    (folder / "nearest.json").write_text(
        json.dumps({"step": 7, "captions": [[{"caption": f"near {n}", "cosine": 0.5}] for n in range(5)]})
    )
    cell = {"mean": 12.34, "std": 1.0, "n": 3}
    row = {"protocols": {protocol: dict.fromkeys(METRICS, cell) for protocol in PROTOCOLS}}
    (folder / "results.json").write_text(json.dumps({"selected_step": 7, "distilled": row}))
    return folder


@pytest.mark.parametrize("form", export.FORMS)
def test_a_fresh_process_without_this_project_reads_the_same_tensors(form, run, tmp_path):
    out = export.main(["--ckpt_path", str(run), "--to", form, "--out", str(tmp_path / f"out.{form}")])
    wanted = SyntheticSet.load(run / "distilled_7.pt").tensors()
    script = (
        "import sys, torch\n"
        + READERS[form].format(out=out)
        + f"torch.save([images, texts, similarity], '{tmp_path}/read.pt')"
    )
    script += "\nassert not any(name.startswith(('distill_utils', 'networks')) for name in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert all(map(torch.equal, torch.load(tmp_path / "read.pt", weights_only=True), wanted))
    card = (out / "README.md" if form == "folder" else out.with_suffix(".md")).read_text()
    assert (
        "| this set, val | 12.3 ± 1.0" in card
        and "CLIP" not in card.split("---")[1]
        and "normalised by mean [0.48" in card
    )


def test_the_folder_holds_pictures_and_captions(run, tmp_path):
    from PIL import Image

    out = export.main(["--ckpt_path", str(run), "--out", str(tmp_path / "set"), "--licence", "CC-BY-4.0"])
    pairs = json.loads((out / "pairs.json").read_text())
    assert [pair["nearest_captions"] for pair in pairs] == [[f"near {n}"] for n in range(5)] and pairs[2][
        "source_caption"
    ] == "source <2>"
    pixels = SyntheticSet.load(run / "distilled_7.pt").pixels()
    with Image.open(out / pairs[3]["image"]) as image:
        assert image.size == (6, 8) and image.getpixel((1, 2)) == tuple(
            (pixels[3, :, 2, 1].clamp(0, 1) * 255).round().int().tolist()
        )
    assert 'license_name: "CC-BY-4.0"' in (out / "README.md").read_text()


def test_captions_of_another_step_are_not_passed_on(run, tmp_path):
    (run / "nearest.json").write_text(json.dumps({"step": 3, "captions": [[]] * 5}))
    out = export.main(["--ckpt_path", str(run), "--out", str(tmp_path / "set")])
    assert all(pair["nearest_captions"] == [] for pair in json.loads((out / "pairs.json").read_text()))


def test_nothing_is_overwritten(run, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        export.main(["--ckpt_path", str(run), "--out", str(tmp_path)])

"""The report page: self-contained, whole with parts of the run missing, and right in a real browser."""

import base64
import io
import json
import re

import pytest
import torch
import yaml
from commands import browse
from PIL import Image

from distill_utils import report
from distill_utils.pages.figures import write_figures
from distill_utils.pages.images import image_uri, similarity_image
from distill_utils.pages.inputs import open_run
from distill_utils.pages.nearest import nearest_captions
from distill_utils.pages.page import strongest_pairs
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import FullSimilarity

EVIL = '<script>document.title="taken"</script> & "dogs"'
URI = re.compile(r'src="(data:image/(?:png|jpeg);base64,[^"]+)"')


def write_report(folder):
    return report.main([str(folder)])


def write_run(folder, n=5):
    torch.manual_seed(0)
    matrix = torch.eye(n) + 0.1 * torch.randn(n, n)
    matrix[1, 3] = -0.9
    for step in (0, 20, 100):
        meta = {
            "dataset": "toy",
            "loss": "WBCE",
            "step": step,
            "source_captions": [EVIL, *["a cat"] * (n - 1)],
            "image_encoder": "nfnet",
        }
        SyntheticSet(
            torch.randn(n, 3, 9, 9) + step, torch.randn(n, 4), FullSimilarity(n, matrix), meta=meta
        ).save(folder / f"distilled_{step}.pt")
    metrics = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")
    row = {key: {"mean": 12.34, "std": 0.5, "n": 3} for key in metrics}
    (folder / "results.json").write_text(json.dumps({"random": row, "distilled": row, "selected_step": 20}))
    lines = [
        {"step": s, "Loss/grand": 2 - s / 100, "Mean/r_mean": s, "Std/r_mean": 1.0, "Val/r_mean": s + 1}
        for s in (0, 20, 100)
    ]
    lines.append({"program": "evaluate", "step": 9999, "Mean/r_mean": 1})
    (folder / "log.jsonl").write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"step": 120, "Mea'
    )  # a killed run's last line
    (folder / "args.yaml").write_text(
        yaml.safe_dump(
            {"name": EVIL, "_run": {"command": f"distill_lors.py --name '{EVIL}'", "device": "cpu"}}
        )
    )
    (folder / "nearest.json").write_text(
        json.dumps({"captions": [[{"caption": EVIL, "cosine": 0.9}] for _ in range(n)]})
    )


@pytest.fixture
def page(tmp_path):
    write_run(tmp_path)
    return write_report(tmp_path).read_text()


def test_the_page_is_escaped_and_reaches_for_nothing(page):
    assert EVIL not in page and "&lt;script&gt;" in page and "<script" not in page
    assert not re.search(
        r"https?:|//|@import|url\((?!#)", re.sub(r"base64,[^\"]+", "", page.replace("<!doctype html>", ""))
    )
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"#][^"]*)"', page))


def test_every_image_decodes_and_the_set_chosen_on_val_is_shown(page):
    images = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in URI.findall(page)]
    assert [image.size for image in images].count((9, 9)) == 10 + 8 and [
        image.size for image in images
    ].count((5, 5)) == 1
    assert (
        "outer step 20" in page
        and page.count("<svg") == 2
        and "12.3" in page
        and "random pairs, InfoNCE" in page
    )


def test_the_page_is_the_same_for_the_same_run(tmp_path):
    write_run(tmp_path)
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


@pytest.mark.parametrize(
    "missing", ["results.json", "log.jsonl", "args.yaml", "nearest.json", "distilled_0.pt"]
)
def test_a_missing_part_drops_its_section_only(tmp_path, missing):
    write_run(tmp_path)
    (tmp_path / missing).unlink()
    page = write_report(tmp_path).read_text()
    assert "</html>" in page and "Strongest off the diagonal" in page


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a run's folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no distilled_"):
        write_report(tmp_path)


def test_nearest_captions_equals_brute_force():
    torch.manual_seed(0)
    texts, embeddings = torch.randn(70, 5), torch.randn(40, 5)
    captions = [f"caption {i % 30}" for i in range(40)]  # ten repeat; the first of each counts
    for found, text in zip(nearest_captions(texts, embeddings, captions), texts):
        cosines = {
            captions[i]: float(torch.cosine_similarity(text, embeddings[i], dim=0))
            for i in reversed(range(40))
        }
        expected = sorted(cosines.items(), key=lambda item: -item[1])[:3]
        assert [entry["caption"] for entry in found] == [caption for caption, _ in expected]
        assert [entry["cosine"] for entry in found] == pytest.approx(
            [cosine for _, cosine in expected], abs=1e-4
        )
    assert len(nearest_captions(texts[:1], embeddings[:2], captions[:2])[0]) == 2


def test_strongest_pairs_and_the_heat_map():
    matrix = torch.eye(4)
    matrix[2, 0], matrix[1, 3] = -0.5, 0.25
    assert strongest_pairs(matrix, 2) == [(2, 0, -0.5), (1, 3, 0.25)]
    uri, limit = similarity_image(matrix)
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    red, _, blue = image.getpixel((0, 2))
    assert limit == 0.5 and blue > red and image.getpixel((1, 0))[0] > 240  # negative is blue, zero white
    assert similarity_image(torch.eye(1))[1] == 1.0 and strongest_pairs(torch.eye(1)) == []


def test_large_images_are_compressed():
    assert image_uri(torch.rand(3, 224, 224)).startswith("data:image/jpeg") and image_uri(
        torch.rand(3, 48, 48)
    ).startswith("data:image/png")


def test_in_a_real_browser(tmp_path):
    write_run(tmp_path)
    path = write_report(tmp_path)
    assert browse(path, tmp_path) == ([], 19, 19, 2)  # S, eight mined pairs, two images of each of five pairs
    (tmp_path / "bad.html").write_text(
        path.read_text().replace("</body>", '<img src="https://example.com/x.png"></body>')
    )
    console, drawn, images, _ = browse(tmp_path / "bad.html", tmp_path)
    assert len(console) == 1 and "example.com" in console[0] and (drawn, images) == (19, 20)


def test_the_cost_and_the_commands_are_told(tmp_path):
    write_run(tmp_path)
    lines = [{"step": s, "time": 100 + 70 * s, "seconds": 2.0, "memory_mb": 2048} for s in range(5)] + [
        {"step": 5, "Guard/bad_steps": 1}
    ]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "evaluate_args.yaml").write_text(
        yaml.safe_dump({"_run": {"command": "evaluate.py --num_eval <5>"}})
    )
    page = write_report(tmp_path).read_text()
    assert (
        "5 outer steps of 2.00 s (median), 0 min 10 s in all" in page
        and "2.0 GiB" in page
        and "1 steps skipped" in page
    )
    assert "python distill_lors.py --name" in page and "--num_eval &lt;5&gt;" in page


def test_a_run_that_was_not_evaluated_shows_its_own_students(tmp_path):
    write_run(tmp_path)
    row = {
        key: {"mean": 43.21, "std": 0.5, "n": 3}
        for key in ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")
    }
    (tmp_path / "results.json").write_text(
        json.dumps({"selected_step": 20, "evaluations": [{"step": 20} | row]})
    )
    page = write_report(tmp_path).read_text()
    assert "43.2" in page and "while distilling" in page


def test_figures_for_a_paper(tmp_path):
    write_run(tmp_path)
    paths = write_figures(open_run(tmp_path))
    assert [path.stem for path in paths] == [
        "recall",
        "matching_loss",
        "similarity",
        "images_initial",
        "images_learned",
        "pairs",
    ]
    assert all(Image.open(path).format == "PNG" for path in paths) and Image.open(paths[0]).width > 1000
    first = [path.read_bytes() for path in paths]
    assert first == [path.read_bytes() for path in write_figures(open_run(tmp_path))]
    pixels = Image.open(paths[-2]).getpixel((4, 4))
    learned = SyntheticSet.load(tmp_path / "distilled_20.pt").pixels()[0][
        :, 2, 2
    ]  # behind two pixels of a frame
    assert all(abs(a - 255 * float(b)) < 1 for a, b in zip(pixels, learned))

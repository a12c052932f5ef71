"""Whatever the files of a run hold, the page and the card show as text: no element, link or row gets in."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch
import yaml
from commands import browse

from distill_utils import export, report
from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.pages.templates import escape_markdown
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import FullSimilarity

REFRESH = '<meta http-equiv=refresh content="0;url=https://example.com/">'
HOSTILE = (
    REFRESH,
    '"><script>document.title="taken"</script>',
    "' onmouseover='alert(1)' x='",
    "</pre></details></style><base href=https://example.com/><form action=https://example.com/><iframe>",
    "{{ 7 * 191 }}{% raw %}<img src=x onerror=alert(1)>",
    "| a | b |\n\n# A heading\n<b>x</b> [link](https://example.com) ![](x.png) www.example.com `x",
)


def write_run(folder, evil):
    """A run in which every string is hostile; its name too, as far as a name of a folder can be."""
    run = folder / evil.replace("/", "").replace("\n", "")[:100]
    run.mkdir()
    matrix = torch.eye(3)
    matrix[0, 1] = 0.5
    words = ("dataset", "loss", "temperature", "image_encoder", "text_encoder")
    meta = dict.fromkeys(words, evil) | {"step": 5, "source_captions": [evil, None, evil]}
    for step in (0, 5):
        SyntheticSet(torch.rand(3, 3, 4, 4), torch.rand(3, 2), FullSimilarity(3, matrix), meta=meta).save(
            run / f"distilled_{step}.pt"
        )
    cell = {"mean": 12.5, "std": 1.0, "n": 3}
    cells = dict.fromkeys(METRICS, cell)
    good = cells | {"protocols": dict.fromkeys(PROTOCOLS, cells), "file": "distilled_5.pt", "dataset": evil}
    broken = {"random": {"n": evil}, "full": {"mean": evil}, "random_same_loss": {"std": evil}}
    rows = {
        name: good | dict.fromkeys(METRICS, cell | bad) | {"protocols": {}} for name, bad in broken.items()
    }
    results = rows | {"distilled": good | {"storage": evil}, "selected_step": 5, evil: evil}
    (run / "results.json").write_text(json.dumps(results))
    near = {"caption": evil, "cosine": 0.5}
    (run / "nearest.json").write_text(json.dumps({"step": 5, "captions": [[near] * 3] * 3}))
    lines = [{"step": s, "Loss/grand": 1.0, "seconds": 1.0, evil: evil, "memory_mb": evil} for s in (1, 2)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = {"name": evil, evil: [evil], "_run": {"command": f"x --name {evil}", "device": evil}}
    for name in ("args.yaml", "evaluate_args.yaml"):
        (run / name).write_text(yaml.safe_dump(arguments))
    return run


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("evil", HOSTILE)
def test_nothing_of_a_file_becomes_an_element_of_the_page(tmp_path, evil):
    (tmp_path / "plain").mkdir()
    plain, hostile = (
        Elements(report.main([str(write_run(folder, text))]).read_text())
        for folder, text in ((tmp_path, evil), (tmp_path / "plain", "harmless"))
    )
    # The same elements with the same attributes as of a run that wishes no harm.
    names = lambda page: [(tag, sorted(attributes)) for tag, attributes in page.found]  # noqa: E731
    assert names(plain) == names(hostile)
    shown = " ".join(plain.text.split())
    assert " ".join(evil.split()) in shown and "1337" not in shown
    policies = [a["content"] for tag, a in plain.found if tag == "meta" and "http-equiv" in a]
    assert len(policies) == 1
    assert {"default-src 'none'", "form-action 'none'", "base-uri 'none'"} <= set(policies[0].split("; "))


def test_a_hostile_page_stays_where_it_is_in_a_browser(tmp_path):
    page = report.main([str(write_run(tmp_path, " ".join(HOSTILE)))])
    (tmp_path / "page.html").write_text(page.read_text())  # the run's own name is none for a command line
    console, drawn, images, charts = browse(tmp_path / "page.html", tmp_path)
    assert (console, drawn, images, charts) == ([], 8, 8, 1)  # S, one mined pair, two images of three pairs


def test_only_numbers_are_numbers(tmp_path):
    page = Elements(report.main([str(write_run(tmp_path, REFRESH))]).read_text())
    rows = [line for line in page.text.splitlines() if "damaged and left out" in line]
    assert len(rows) == 3 and "distilled" in page.text


@pytest.mark.parametrize("evil", HOSTILE)
def test_nothing_of_a_file_becomes_markdown_of_the_card(tmp_path, evil):
    run = write_run(tmp_path, evil)
    cards = []
    for licence in ("MIT", evil):
        out = export.main(
            ["--ckpt_path", str(run), "--out", str(tmp_path / licence[:2]), "--licence", licence]
        )
        cards.append((out / "README.md").read_text())
    for card in cards:
        front, body = card.split("\n---\n", 1)
        assert set(yaml.safe_load(front.removeprefix("---\n"))) == {"license", "license_name", "tags"}
        lines = body.splitlines()
        assert [line for line in lines if line.startswith("#")] == [
            "# 3 distilled image-text pairs",
            "## Recall on the test split, in percent",
            "## How to train on it",
        ]
        # the tables' bars that count are ours
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {10}
        unescaped = re.sub(r"\\[\\`*_{}\[\]<>#|&!~$:@.]", "", body)
        assert not re.search(r"<|https?:|\]\(|www\.", unescaped)
    assert yaml.safe_load(cards[1].split("\n---\n")[0].removeprefix("---\n"))["license_name"] == evil


def test_escaped_markdown_is_one_line_of_the_same_characters():
    text = "a_b *c* `d` <e> [f](http://g) | h\n# i \\ www.j.k &amp; $l$"
    escaped = escape_markdown(text)
    assert "\n" not in escaped and re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())
    assert escape_markdown(0.07) == 0.07

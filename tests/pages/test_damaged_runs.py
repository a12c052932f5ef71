"""Damaged files of a run: the programs leave out what they cannot read and say so, or end in one sentence."""

import json
import math

import pytest
import torch
import yaml

from distill_utils import compare, export, report
from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.pages.inputs import read_nearest
from distill_utils.pages.rows import set_rows
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity

ODD = [None, True, -1, 1e308, math.nan, math.inf, "text", "\ud800", [], [[]], {}, {"a": []}, [1, "b"], ""]


def write_run(folder):
    torch.manual_seed(0)
    similarity = build_similarity("lowrank", 2, rank=1)
    plain = {"step": 9, "dataset": "toy", "source_captions": ["a cat", None], "loss": "WBCE"}
    for step in (0, 9):
        synthetic = SyntheticSet(torch.rand(2, 3, 4, 4), torch.rand(2, 2), similarity, meta=plain)
        synthetic.save(folder / f"distilled_{step}.pt")
    cells = {metric: {"mean": 11.1, "std": 0.5, "n": 3} for metric in METRICS}
    row = cells | {"protocols": dict.fromkeys(PROTOCOLS, cells), "storage": 2.0, "file": "distilled_9.pt"}
    results = {"distilled": row, "selected_step": 9, "evaluations": [{"step": 9} | row], "random": row}
    (folder / "results.json").write_text(json.dumps(results))
    near = [[{"caption": "a dog", "cosine": 0.5}]] * 2
    (folder / "nearest.json").write_text(json.dumps({"step": 9, "captions": near}))
    (folder / "args.yaml").write_text(
        yaml.safe_dump({"name": "run", "_run": {"command": "x", "device": "cpu"}})
    )
    return folder


def damaged(value):
    """Every copy of a JSON value in which one part is odd or taken out; of equal parts one alone."""
    yield from ODD
    parts = list(
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for number, (key, part) in enumerate(parts):
        if part in [earlier for _, earlier in parts[:number]]:
            continue
        for odd in damaged(part):
            copy = value.copy()
            copy[key] = odd
            yield copy
        if isinstance(value, dict):
            yield {other: kept for other, kept in value.items() if other != key}


def look(folder, forms=("folder",)):
    """[page, table, export...] of a run, None for what was refused in a sentence."""
    count = len(list(folder.parent.iterdir()))
    programs = [lambda: report.main([str(folder)]).read_text(), lambda: compare.main([str(folder)])]
    for form in forms:
        out = folder.parent / f"{form}_{count}"
        programs.append(
            lambda out=out, to=form: export.main(["--ckpt_path", str(folder), "--out", str(out), "--to", to])
        )
    made = []
    for program in programs:
        try:
            made.append(program())
        except UserError as error:
            assert "\n" not in str(error)
            made.append(None)
    assert made[0] is None or made[0].rstrip().endswith("</html>")
    return made


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return write_run(tmp_path / "run")


def test_the_run_itself_is_whole(run):
    page, table, *exports = look(run, export.FORMS)
    assert 'warning"' not in page and "a dog" in page and "11.1" in page and table and None not in exports


def test_any_part_of_the_results_may_be_damaged(run):
    """What is read of them is whole: rows of numbers, or none."""
    synthetic, path = SyntheticSet.load(run), run / "distilled_9.pt"
    whole = set_rows(json.loads((run / "results.json").read_text()), path, synthetic, [])
    assert list(whole) == ["random", "distilled"]
    count = 0
    for odd in damaged(json.loads((run / "results.json").read_text())):
        if not isinstance(odd, dict):
            continue
        notes, count = [], count + 1
        for row in set_rows(odd, path, synthetic, notes).values():
            cells = [row[metric] for metric in METRICS]
            cells += [cells[metric] for cells in row["protocols"].values() for metric in METRICS]
            assert all(0 <= c["mean"] <= 100 and 0 <= c["std"] <= 100 and type(c["n"]) is int for c in cells)
            assert row["storage"] is None or 0 <= row["storage"] < math.inf
    assert count > 200


def test_any_part_of_the_nearest_captions_may_be_damaged(run):
    path = run / "nearest.json"
    for odd in damaged(json.loads(path.read_text())):
        path.write_text(json.dumps(odd))
        notes = []
        for near in read_nearest(run, 9, 2, notes):
            for one in near:
                one["caption"].encode()
                assert -1.01 <= one["cosine"] <= 1.01
        assert not any("\n" in note for note in notes)


VARIANTS = {
    "results.json": [
        "[]",
        "7",
        "null",
        '"text"',
        "",
        "{",
        "[" * 5000,
        "9" * 5000,
        '{"selected_step": [9]}',
        '{"selected_step": 1e999, "evaluations": 3}',
        '{"selected_step": 9, "evaluations": [3, [], {"step": 9, "r_mean": {}}]}',
        '{"selected_step": 9, "distilled": [1]}',
        '{"selected_step": 9, "distilled": {"r_mean": {"mean": "<b>", "std": NaN, "n": 1e400}}}',
        '{"selected_step": 9, "selected": [], "random": "x", "full": {"file": {}, "digest": []}}',
        b"\xff\xfe",
    ],
    "nearest.json": [
        "[]",
        "null",
        '{"step": 9}',
        '{"step": 9, "captions": {"0": []}}',
        '{"step": 9, "captions": [[{"caption": 7, "cosine": 0.5}], []]}',
        '{"step": 9, "captions": [[{"caption": "\\ud800", "cosine": 0.5}], []]}',
        '{"step": 9, "captions": [[{"caption": "a", "cosine": "0.5"}], null]}',
        '{"step": 9, "captions": [[{"caption": "a", "cosine": NINES}], []]}',
        '{"step": 9, "captions": [[]]}',
        json.dumps({"step": 9, "captions": [[{"caption": "a " * 100_000, "cosine": 0.5}]] * 2}),
    ],
    "log.jsonl": [
        "7\n[]\nnull\n{}\n",
        '{"step": "1", "Loss/grand": 1}\n{"step": [], "Mean/r_mean": 1}',
        '{"step": 1, "Loss/grand": "1", "seconds": "2", "time": [], "memory_mb": {}}',
        '{"step": 1, "Loss/grand": NaN, "seconds": Infinity, "time": -1e300}\n{"step": 2, "time": 1e300}',
        '{"step": 1e99, "Loss/grand": 1e99, "seconds": 1e99}\n{"step": -1e99, "Loss/grand": -1e99}',
        '{"step": 1, "Loss/grand": NINES}\n[[[',
        '{"step": 1, "Mean/r_mean": 5, "Std/r_mean": -3, "program": ["evaluate"]}',
        b'\xff\xfe{"step": 1}',
    ],
    "args.yaml": [
        "[1, 2]",
        "name",
        "_run: 7",
        "_run: [1]",
        "_run: {command: {a: b}, device: [x]}",
        "a: &x [1, 2]\nb: *x",
        "when: 2026-99-99",
        "a: !!python/object/apply:os.system ['true']",
        "{1: 2, [3]: 4}",
        "a: !!binary 7",
        "{" * 3000,
        b"\xff\xfe",
        "name: " + "x" * 200_000,
    ],
}


CASES = [(name, content) for name, contents in VARIANTS.items() for content in contents]


@pytest.mark.parametrize("name, content", CASES, ids=[f"{n} {name}" for n, (name, _) in enumerate(CASES)])
def test_a_damaged_file_leaves_the_page(run, name, content):
    content = content if isinstance(content, bytes) else content.replace("NINES", "9" * 5000).encode()
    (run / name).write_bytes(content)
    page, table, exported = look(run)
    assert page is not None and len(page) < 200_000
    assert name == "results.json" or None not in (table, exported)


def test_a_folder_in_place_of_a_file_leaves_the_page(run):
    for name in VARIANTS:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
    page, table, exported = look(run)
    assert page is not None and page.count('warning"') >= 3


METAS = [
    {"source_captions": "a cat"},
    {"source_captions": ["a cat"]},
    {"source_captions": [7, {}]},
    {"source_captions": ["\ud800", "a\0b\nc"]},
    {"source_captions": {"a": 1, "b": 2}},
    {"dataset": ["toy"], "loss": {"a": 1}, "temperature": "hot", "image_encoder": 7, "text_encoder": None},
    {"dataset": "x" * 100_000, "step": [9]},
    {"step": 10**40, "temperature": math.nan, "seed": 10**500},
    {"tensor": torch.zeros(2), 7: "seven", "nested": [[["deep"]]], "dict": {"a": 1}},
    {"mean": None},
    {"mean": [0.5, "0.5", 0.5]},
    {"std": [1.0, 0.0, 1.0]},
    {"std": [math.nan] * 3},
    {"std": 0.2},
    {"sim_type": []},
    {"sim_type": "lowrank", "sim_rank": "1"},
    {"sim_type": "lowrank", "alpha": math.inf},
]


@pytest.mark.parametrize("meta", METAS, ids=lambda meta: " ".join(map(str, meta)))
def test_a_meta_of_other_types(run, meta, monkeypatch):
    monkeypatch.setattr(SyntheticSet, "saved", saved_with(meta))
    write_run(run)
    page, table, *exported = look(run, export.FORMS)
    shown = not {"mean", "std", "sim_type"} & set(meta)
    assert ([page, table, *exported].count(None) == 0) == (shown or "alpha" in meta)
    if page and "source_captions" in meta:
        assert ("source captions are damaged" in page) == (
            meta["source_captions"] != METAS[3]["source_captions"]
        )


def saved_with(meta):
    plain = SyntheticSet.saved

    def saved(self):
        described = plain(self)
        return described | {"meta": described["meta"] | meta}

    return saved


def test_tensors_that_are_not_finite_have_a_page(run):
    synthetic = SyntheticSet.load(run)
    with torch.no_grad():
        synthetic.images[0] = math.nan
        synthetic.similarity.right[0] = math.inf
    synthetic.save(run / "distilled_9.pt")
    page, table, exported = look(run)
    assert None not in (page, exported)


def test_a_first_set_that_cannot_be_read_is_not_shown(run):
    (run / "distilled_0.pt").write_bytes(b"nothing")
    page, table, exported = look(run)
    assert "distilled_0.pt cannot be read" in page and 'alt="initial image' not in page

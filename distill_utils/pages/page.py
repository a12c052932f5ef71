"""What the report page of a run shows, as plain data for its template."""

import statistics

import yaml

from distill_utils.pages.figures import curve_figures, svg
from distill_utils.pages.images import image_uri, similarity_image
from distill_utils.pages.rows import on_other_data, protocol_of
from distill_utils.pages.templates import render
from distill_utils.pages.values import fact, words
from distill_utils.runs.writing import write_text

COLUMNS = {
    "img_r1": "IR@1",
    "img_r5": "IR@5",
    "img_r10": "IR@10",
    "txt_r1": "TR@1",
    "txt_r5": "TR@5",
    "txt_r10": "TR@10",
    "r_mean": "mean",
}
_LABELS = {
    "random": "random pairs, InfoNCE",
    "random_same_loss": "random pairs, same loss",
    "identity": "distilled with S = I",
    "full": "full data",
}
_MOST_PAIRS = 64
_LONGEST = 1e9  # seconds that are believed
_MOST_ARGUMENTS = 40_000  # characters


def write_report(run):
    """Write report.html of an opened run to its folder and return the path."""
    path = run.folder / "report.html"
    write_text(path, render("run.html.j2", **describe(run)))
    return path


def describe(run):
    """The values of run.html.j2."""
    provenance = run.arguments.get("_run")
    provenance = provenance if isinstance(provenance, dict) else {}
    similarity, pixels = run.final.similarity().detach(), run.final.pixels()
    uri, limit = similarity_image(similarity)
    return {
        "title": run.folder.name,
        "facts": _facts(run, provenance),
        "notes": run.notes,
        "columns": list(COLUMNS.values()),
        "rows": [_row(name, row, run) for name, row in run.rows.items()],
        "folder": str(run.folder),
        "cost": _cost(run.log, fact(provenance.get("device")) or "an unknown machine"),
        "commands": _commands(provenance, run.evaluated_with.get("_run")),
        "curves": [svg(figure) for figure in curve_figures(run.log).values()],
        "matrix": {"uri": uri, "limit": limit},
        "mined": [
            {"image": i, "text": j, "value": value, "uri": image_uri(pixels[i]), "says": _says(run, j)}
            for i, j, value in strongest_pairs(similarity)
            if value
        ],
        "pairs": _pairs(run, pixels),
        "more": max(0, len(run.final) - _MOST_PAIRS),
        "with_nearest": bool(run.nearest),
        "arguments": _yaml(run.arguments),
    }


def _facts(run, provenance):
    """The line below the title."""
    meta, (height, width) = run.final.meta, run.final.images.shape[-2:]
    said = {key: fact(meta.get(key)) for key in ("dataset", "loss", "image_encoder", "text_encoder")}
    facts = [
        f"{len(run.final)} pairs",
        said["dataset"],
        f"protocol {protocol_of(meta) or '?'}",
        f"outer step {run.step}",
        f"{width} px" if height == width else f"{height} x {width} px",
        f"loss {said['loss'] or '?'}",
        f"similarity {run.final.similarity.kind}",
        f"{said['image_encoder'] or '?'} + {said['text_encoder'] or '?'}",
        fact(provenance.get("device")),
    ]
    return [one for one in facts if one]


def _row(name, row, run):
    """A row of the table: its label, the recalls, n, the mean by the other protocols, the storage."""
    others = [row["protocols"][p]["r_mean"] if row["protocols"] else None for p in ("last", "best")]
    return {
        "label": _LABELS.get(name, name) + on_other_data(row, run.final),
        "cells": [row[key] for key in COLUMNS],
        "n": row["r_mean"]["n"],
        "others": others,
        "storage": row["storage"],
        "shown_set": name in ("distilled", "while distilling"),
    }


def _cost(log, device):
    """What the distillation took, in a sentence; empty where the log does not say."""
    seconds = [line["seconds"] for line in log if 0 <= line.get("seconds", -1) < _LONGEST]
    if not seconds:
        return ""
    median, steps = statistics.median(seconds), _duration(sum(seconds))
    facts = [f"{len(seconds)} outer steps of {median:.2f} s (median), {steps} in all"]
    whole = log[-1].get("time", 0) - log[0].get("time", _LONGEST)
    if 0 < whole < _LONGEST:
        facts.append(f"{_duration(whole)} with evaluations")
    if memory := max(line.get("memory_mb", 0) for line in log):
        facts.append(f"at most {memory / 1024:.1f} GiB of memory")
    if skipped := sum("Guard/bad_steps" in line for line in log):
        facts.append(f"{skipped} steps skipped for want of a finite gradient")
    return f"{'; '.join(facts)}; on {device}."


def _duration(seconds):
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _commands(*provenances):
    """The command lines that made the run and its results."""
    commands = (p.get("command") if isinstance(p, dict) else None for p in provenances)
    return [f"python {line}" for command in commands if (line := words(command, 4000))]


def strongest_pairs(similarity, count=8):
    """The `count` off-diagonal cells of largest |S|: (image, text, value)."""
    matrix = similarity.clone().fill_diagonal_(0)
    n = len(matrix)
    order = matrix.abs().flatten().topk(min(count, n * n - n)).indices.tolist()
    return [(cell // n, cell % n, float(matrix.flatten()[cell])) for cell in order]


def _says(run, j):
    """What the learned text j says: the real caption nearest to it, or the one that it began as."""
    if run.nearest and run.nearest[j]:
        return run.nearest[j][0]["caption"]
    return (run.sources[j] or "(began as noise)") if run.sources else ""


def _pairs(run, after):
    """Of the first pairs: the images, the caption it began with, the captions nearest to its learned text."""
    before = run.initial.pixels() if run.initial is not None and len(run.initial) == len(run.final) else None
    pairs = []
    for i in range(min(len(run.final), _MOST_PAIRS)):
        images = [] if before is None else [("initial", image_uri(before[i]))]
        learned = "learned" if run.step else "image"
        pairs.append(
            {
                "images": [*images, (learned, image_uri(after[i]))],
                "began": (run.sources[i] or "noise") if run.sources else None,
                "nearest": run.nearest[i] if run.nearest else [],
            }
        )
    return pairs


def _yaml(arguments):
    """The arguments as they are in their file, cut where they are endless."""
    text = yaml.safe_dump(arguments, sort_keys=False) if arguments else ""
    return text if len(text) <= _MOST_ARGUMENTS else text[:_MOST_ARGUMENTS] + "\n…"

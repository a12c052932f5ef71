"""One self-contained HTML page of a run, or its figures as PNG: `python -m distill_utils.report
logged_files/toy/quickstart [--png]`.
"""

import argparse
import base64
import html
import io
import json
import re
import statistics
import sys
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure
from PIL import Image
from torchvision.utils import make_grid, save_image

from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.signals import run_program
from distill_utils.runs.writing import atomic_path, write_text
from distill_utils.synthetic.set import SyntheticSet

ROWS = {
    "random": "random pairs, InfoNCE",
    "random_same_loss": "random pairs, same loss",
    "distilled": "distilled",
    "full": "full data",
}
COLUMNS = {
    "img_r1": "IR@1",
    "img_r5": "IR@5",
    "img_r10": "IR@10",
    "txt_r1": "TR@1",
    "txt_r5": "TR@5",
    "txt_r10": "TR@10",
    "r_mean": "mean",
}
_MOST_PAIRS = 64
_INK = "#808790"  # reads on light and on dark


def image_uri(pixels):
    """A data URI of pixels [3, H, W] in [0, 1]: PNG, or JPEG above 128 px so that the page stays small."""
    array = (pixels * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    kind, options = ("jpeg", {"quality": 90}) if max(array.shape) > 128 else ("png", {})
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _svg(figure):
    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": "lors", "svg.fonttype": "none"}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    # Without the namespaces and the document type no address is left in the page; inline SVG needs neither.
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :]).replace("xlink:href", "href")


def _axes(title, width=5.2, height=3.0):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.tick_params(colors=_INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axes.grid(alpha=0.25)
    return figure, axes


def curve_figure(log, title, keys):
    """A figure of log keys over outer steps, {key: label}; a Mean/ has its Std/ as a band. None without
    points.
    """
    figure, axes = _axes(title)
    for key, label in keys.items():
        points = [
            (line["step"], line[key], line.get(key.replace("Mean/", "Std/"), 0))
            for line in log
            if key in line
        ]
        if not points:
            continue
        steps, values, spread = map(np.array, zip(*points))
        (line,) = axes.plot(
            steps, values, label=label, linewidth=1.6, marker="o" if len(points) < 25 else None, markersize=3
        )
        if key.startswith("Mean/"):
            axes.fill_between(
                steps, values - spread, values + spread, alpha=0.15, color=line.get_color(), linewidth=0
            )
    if not axes.lines:
        return None
    axes.set_xlabel("outer step", color=_INK, fontsize=8)
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK)
    return figure


CURVES = {
    "recall": (
        "Recall while distilling (%)",
        {
            "Mean/r_mean": "test, mean of six recalls",
            "Mean/img_r10": "IR@10",
            "Mean/txt_r10": "TR@10",
            "Val/r_mean": "val, mean of six",
        },
    ),
    "matching_loss": (
        "Matching loss",
        {"Loss/grand": "sum", "Loss/img_grand": "image tower", "Loss/txt_grand": "text head"},
    ),
    "learning_rates": (
        "Learned learning rates",
        {"Synthetic_LR/Image": "image tower", "Synthetic_LR/Text": "text head"},
    ),
}


def curve_figures(log):
    """{name: figure} of the CURVES that the log has points of."""
    figures = {name: curve_figure(log, *curve) for name, curve in CURVES.items()}
    return {name: figure for name, figure in figures.items() if figure}


def _off_diagonal_limit(matrix):
    """The largest |S| off the diagonal, 1 where there is none: what was mined is there, the diagonal near 1
    saturates.
    """
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    return (float(np.abs(off).max()) if off.size else 0.0) or 1.0


def similarity_image(similarity):
    """A data URI of S [N, N], one pixel a cell: blue below 0, white at 0, red above; and the value that
    saturates.
    """
    matrix = similarity.cpu().numpy()
    limit = _off_diagonal_limit(matrix)
    colours = matplotlib.colormaps["RdBu_r"](np.clip(matrix / limit, -1, 1) / 2 + 0.5)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray((colours * 255).round().astype(np.uint8)).save(buffer, "png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", limit


def similarity_figure(similarity):
    """S [N, N] as a heat map with its scale."""
    matrix = similarity.cpu().numpy()
    limit = _off_diagonal_limit(matrix)
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xlabel("text", fontsize=9)
    axes.set_ylabel("image", fontsize=9)
    figure.colorbar(drawn, shrink=0.8)
    return figure


def strongest_pairs(similarity, count=8):
    """The `count` off-diagonal cells of largest |S|: (image, text, value)."""
    matrix = similarity.clone().fill_diagonal_(0)
    n = len(matrix)
    order = matrix.abs().flatten().topk(min(count, n * n - n)).indices.tolist()
    return [(cell // n, cell % n, float(matrix.flatten()[cell])) for cell in order]


def _read_log(path):
    """Lines of the run's own curves; a line that is not whole JSON, as a killed run leaves one, is passed
    over.
    """
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line and line.get("program") != "evaluate":
            lines.append(line)
    return lines


def _cell(cell):
    return f"<td>{cell['mean']:.1f}<small> ± {cell['std']:.1f}</small></td>"


def _results_table(results):
    rows = [
        (label, results[key])
        for key, label in ROWS.items()
        if isinstance(results.get(key), dict) and "r_mean" in results[key]
    ]
    if "distilled" not in results:
        rows += [
            ("while distilling", result)
            for result in results.get("evaluations", [])
            if result["step"] == results.get("selected_step")
        ]
    if not rows:
        return "<p>No evaluation yet: run <code>python -m distill_utils.evaluate</code>.</p>"
    head = "".join(f"<th>{name}</th>" for name in (*COLUMNS.values(), "n", "last", "best", "plain pairs"))
    body = "".join(
        f"<tr><th>{label}</th>"
        + "".join(_cell(result[key]) for key in COLUMNS)
        + f"<td>{result['r_mean']['n']}</td>"
        + "".join(
            _cell(result["protocols"][protocol]["r_mean"]) if "protocols" in result else "<td></td>"
            for protocol in ("last", "best")
        )
        + (f"<td>{result['storage']:.2f}</td></tr>" if "storage" in result else "<td></td></tr>")
        for label, result in rows
    )
    return (
        f"<div class=wide><table><tr><th></th>{head}</tr>{body}</table></div>"
        "<p class=note>Test recall in percent, mean ± standard deviation over n students; each student's epoch was chosen on val, but for the "
        "last two means, at the last epoch and at the best test epoch, which selects on the test split as published tables do. IR: text to image, "
        "TR: image to text. "
        "Plain pairs: what the set would weigh in pairs without a similarity.</p>"
    )


def _cost(log, provenance):
    """What the distillation took, in a sentence or two; empty where the log does not say."""
    seconds = [line["seconds"] for line in log if "seconds" in line]
    if not seconds:
        return ""
    facts = [
        f"{len(seconds)} outer steps of {statistics.median(seconds):.2f} s (median), {_duration(sum(seconds))} in all"
    ]
    if len(log) > 1 and "time" in log[0] and "time" in log[-1]:
        facts.append(f"{_duration(log[-1]['time'] - log[0]['time'])} with evaluations")
    if memory := max((line.get("memory_mb", 0) for line in log), default=0):
        facts.append(f"at most {memory / 1024:.1f} GiB of memory")
    if skipped := sum("Guard/bad_steps" in line for line in log):
        facts.append(f"{skipped} steps skipped for want of a finite gradient")
    return f"<p>{html.escape('; '.join(facts))}; on {html.escape(str(provenance.get('device', 'an unknown machine')))}.</p>"


def _duration(seconds):
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _caption_lines(captions):
    return "".join(
        f"<li>{html.escape(entry['caption'])} <small>{entry['cosine']:.2f}</small></li>" for entry in captions
    )


def _pair_cards(initial, final, nearest):
    """A card per pair: initial and final image, the caption it began with, the captions nearest to its
    learned text.
    """
    before = initial.pixels() if initial is not None else None
    after, sources = final.pixels(), final.meta.get("source_captions") or [None] * len(final)
    cards = []
    for i in range(min(len(final), _MOST_PAIRS)):
        images = ([("initial", before[i])] if before is not None else []) + [("learned", after[i])]
        figures = "".join(
            f'<figure><img alt="{name} image {i}" src="{image_uri(pixels)}"><figcaption>{name}</figcaption></figure>'
            for name, pixels in images
        )
        source = (
            f"<p><small>began as</small> {html.escape(sources[i])}</p>"
            if sources[i]
            else "<p><small>began as noise</small></p>"
        )
        near = (
            f"<small>nearest captions now</small><ul>{_caption_lines(nearest[i])}</ul>"
            if i < len(nearest)
            else ""
        )
        cards.append(f"<article><h3>{i}</h3><div class=images>{figures}</div>{source}{near}</article>")
    more = len(final) - len(cards)
    missing = (
        ""
        if nearest
        else "<p class=note>The real captions were not at hand, so the nearest ones are not shown.</p>"
    )
    return (
        missing
        + f"<div class=grid>{''.join(cards)}</div>"
        + (f"<p class=note>and {more} more pairs in the file.</p>" if more else "")
    )


def _text_of(final, nearest, j):
    """What the learned text j says: the real caption nearest to it, or the one that it began as."""
    sources = final.meta.get("source_captions") or [None] * len(final)
    return nearest[j][0]["caption"] if j < len(nearest) and nearest[j] else sources[j] or "(began as noise)"


def _similarity_section(final, nearest):
    similarity, pixels = final.similarity().detach(), final.pixels()
    uri, limit = similarity_image(similarity)
    cards = "".join(
        f'<article class=mined><img alt="image {i}" src="{image_uri(pixels[i])}"><p><b class={"up" if value > 0 else "down"}>{value:+.2f}</b>'
        f"<small> image {i}, text {j}</small><br>{html.escape(_text_of(final, nearest, j))}</p></article>"
        for i, j, value in strongest_pairs(similarity)
        if value
    )
    mined = (
        f"<div class=mines>{cards}</div>"
        if cards
        else "<p>S is the identity: nothing is mined off its diagonal.</p>"
    )
    return (
        f'<div class=split><figure><img class=matrix alt="similarity matrix" src="{uri}"><figcaption>rows: images, columns: texts; blue to red: '
        f"-{limit:.2g} to {limit:.2g}</figcaption></figure><div><h3>Strongest off the diagonal: images and texts of other pairs</h3>"
        f"{mined}</div></div>"
    )


def _find_sets(run_dir, results):
    steps = {
        int(match[1]): path
        for path in run_dir.glob("distilled_*.pt")
        if (match := re.fullmatch(r"distilled_(\d+)\.pt", path.name))
    }
    if not steps:
        raise UserError(f"{run_dir} holds no distilled_*.pt to report on.")
    last = results.get("selected_step") if results.get("selected_step") in steps else max(steps)
    initial = SyntheticSet.load(steps[0]) if 0 in steps and last != 0 else None
    return initial, SyntheticSet.load(steps[last]), last


def _arguments(run_dir):
    """(provenance, HTML of the arguments) of args.yaml."""
    try:
        values = yaml.safe_load((run_dir / "args.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        return {}, "<p class=note>args.yaml was not at hand.</p>"
    provenance = values.get("_run") if isinstance(values.get("_run"), dict) else {}
    return provenance, f"<pre>{html.escape(yaml.safe_dump(values, sort_keys=False))}</pre>"


def _commands(run_dir, provenance):
    """The command lines that made the run and its results."""
    commands = [provenance.get("command")]
    try:
        evaluated = yaml.safe_load((run_dir / "evaluate_args.yaml").read_text(encoding="utf-8"))
        commands.append(evaluated["_run"]["command"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        pass
    return "".join(
        f"<p><code>python {html.escape(str(command))}</code></p>" for command in commands if command
    )


class _Loaded:
    """What a run's folder holds of what the page and the figures show; UserError where there is no synthetic
    set.
    """

    def __init__(self, run_dir):
        self.folder = Path(run_dir)
        if not self.folder.is_dir():
            raise UserError(f"{run_dir} is not a run's folder.")
        self.results = read_json(self.folder / "results.json", {})
        self.initial, self.final, self.step = _find_sets(self.folder, self.results)
        self.log = _read_log(self.folder / "log.jsonl")
        nearest = read_json(self.folder / "nearest.json", {})
        self.nearest = nearest.get("captions", []) if nearest.get("step", self.step) == self.step else []


def write_report(run_dir):
    """Write `run_dir`/report.html from the run's files and return its path; UserError where there is no
    synthetic set.
    """
    run = _Loaded(run_dir)
    provenance, arguments = _arguments(run.folder)
    meta = run.final.meta
    facts = [
        f"{len(run.final)} pairs",
        str(meta.get("dataset", "")),
        f"outer step {run.step}",
        f"{tuple(run.final.images.shape[-2:])[0]} px",
        f"loss {meta.get('loss', '?')}",
        f"similarity {run.final.similarity.kind}",
        f"{meta.get('image_encoder', '?')} + {meta.get('text_encoder', '?')}",
        str(provenance.get("device", "")),
    ]
    page = _PAGE.substitute(
        title=html.escape(run.folder.name),
        facts=html.escape(" · ".join(fact for fact in facts if fact)),
        results=_results_table(run.results),
        cost=_cost(run.log, provenance),
        commands=_commands(run.folder, provenance),
        curves="".join(f"<div class=curve>{_svg(figure)}</div>" for figure in curve_figures(run.log).values())
        or "<p class=note>log.jsonl holds no curves.</p>",
        similarity=_similarity_section(run.final, run.nearest),
        pairs=_pair_cards(run.initial, run.final, run.nearest),
        arguments=arguments,
    )
    write_text(run.folder / "report.html", page)
    return run.folder / "report.html"


def write_figures(run_dir):
    """Write the figures of a paper to `run_dir`/figures, PNG at 300 dpi, and return their paths."""
    run = _Loaded(run_dir)
    paths = []
    for name, figure in (
        curve_figures(run.log) | {"similarity": similarity_figure(run.final.similarity().detach())}
    ).items():
        paths.append(run.folder / "figures" / f"{name}.png")
        with atomic_path(paths[-1]) as partial:
            figure.savefig(partial, format="png", dpi=300, metadata={"Software": None})
    sets = {"images_initial": run.initial, "images_learned": run.final}
    for name, synthetic in sets.items():
        if synthetic is not None:
            paths.append(run.folder / "figures" / f"{name}.png")
            with atomic_path(paths[-1]) as partial:
                save_image(
                    make_grid(synthetic.pixels(), nrow=10, padding=2, pad_value=1.0), partial, format="png"
                )
    return paths


_PAGE = Template("""<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name=viewport content="width=device-width, initial-scale=1"><title>$title</title>
<style>
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1d2126; --soft: #6b727b; --line: #e3e5e8; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #98a0a8; --line: #2d3238; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  }
h1 { margin: 0; font-size: 1.7rem; } h2 { margin: 2.2rem 0 .7rem; font-size: 1.2rem; }
h3 { margin: 0 0 .4rem; font-size: .95rem; color: var(--soft); }
small, .note, figcaption, .facts { color: var(--soft); } .note, figcaption { font-size: .85rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .35rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
.mines { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); gap: .7rem; }
.mined { display: flex; gap: .7rem; align-items: center; padding: .5rem; } .mined img { width: 4.5rem; flex: none; } .mined p { margin: 0; }
.up { color: #c2412d; } .down { color: #2f74b5; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.curve, article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; }
.curve svg { width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.images { display: flex; gap: .6rem; } figure { margin: 0; flex: 1; }
img { width: 100%; display: block; image-rendering: pixelated; border-radius: 4px; }
article p, article ul { margin: .5rem 0; font-size: .88rem; } article ul { padding-left: 1.1rem; }
.split { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem; align-items: start; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem; font-size: .8rem; }
code { overflow-wrap: anywhere; font-size: .82rem; }
</style></head><body>
<h1>$title</h1><p class=facts>$facts</p>
<h2>Retrieval</h2>$results
$cost
$commands
<h2>Curves</h2><div class=curves>$curves</div>
<h2>Similarity</h2>$similarity
<h2>Pairs</h2>$pairs
<h2>How it was made</h2><details><summary>all arguments</summary>$arguments</details>
</body></html>
""")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="a run's folder, with its distilled_*.pt")
    parser.add_argument(
        "--png", action="store_true", help="also write the figures to RUN/figures, as PNG for a paper"
    )
    args = parser.parse_args(argv)
    path = write_report(args.run_dir)
    print(f"report: {path}")
    if args.png:
        print(f"figures: {', '.join(map(str, write_figures(args.run_dir)))}")
    return path


if __name__ == "__main__":
    sys.exit(run_program(main))

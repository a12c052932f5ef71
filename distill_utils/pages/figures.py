"""Curves and the similarity drawn by matplotlib: as SVG for the page, as PNG for a paper."""

import io
import re

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from distill_utils.pages.images import encode, off_diagonal_limit, to_picture
from distill_utils.pages.pairs import draw_pairs
from distill_utils.runs.writing import atomic_path

_INK = "#808790"  # reads on light and on dark

_RECALL_ON_TEST = {
    "Mean/r_mean": "test, mean of six recalls",
    "Mean/img_r10": "IR@10",
    "Mean/txt_r10": "TR@10",
    "Val/r_mean": "val, mean of six",
}
_RECALL_ON_VAL = {"Mean/r_mean": "mean of six recalls", "Mean/img_r10": "IR@10", "Mean/txt_r10": "TR@10"}
_LOSS = {"Loss/grand": "sum", "Loss/img_grand": "image tower", "Loss/txt_grand": "text head"}
_RATES = {"Synthetic_LR/Image": "image tower", "Synthetic_LR/Text": "text head"}


def curve_figures(log):
    """{name: figure} of the curves that the log has points of.

    log: lines {"step": outer step, key: number}. Mean/ is recall on test where the published protocol was
    logged beside it, and recall on val where a run looks at val alone.
    """
    on_test = any("Best/r_mean" in line for line in log)
    recall = ("test", _RECALL_ON_TEST) if on_test else ("val", _RECALL_ON_VAL)
    figures = {
        "recall": _curve_figure(log, f"Recall on {recall[0]} while distilling (%)", recall[1]),
        "matching_loss": _curve_figure(log, "Matching loss", _LOSS),
        "learning_rates": _curve_figure(log, "Learned learning rates", _RATES),
    }
    return {name: figure for name, figure in figures.items() if figure}


def _curve_figure(log, title, keys):
    """A figure of {log key: label} over outer steps, a Mean/ with its Std/ as a band; None without points."""
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
        few = {"marker": "o", "markersize": 3} if len(points) < 25 else {}
        (line,) = axes.plot(steps, values, label=label, linewidth=1.6, **few)
        if key.startswith("Mean/"):
            band = {"alpha": 0.15, "color": line.get_color(), "linewidth": 0}
            axes.fill_between(steps, values - spread, values + spread, **band)
    if not axes.lines:
        return None
    axes.set_xlabel("outer step", color=_INK, fontsize=8)
    axes.legend(fontsize=8, frameon=False, labelcolor=_INK)
    return figure


def _axes(title, width=4.2, height=2.7):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, color=_INK, loc="left")
    axes.tick_params(colors=_INK, labelsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    axes.grid(alpha=0.25)
    return figure, axes


def svg(figure):
    """Inline SVG of a figure. It goes into the page as it is, so the words in it must be our own."""
    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same page.
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "lors", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    # Without the namespaces and the document type no address is left in the page; inline SVG needs neither.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    return Markup(text.replace("xlink:href", "href"))


def similarity_figure(similarity):
    """S [N, N] as a heat map with its scale."""
    matrix = similarity.cpu().numpy()
    limit = off_diagonal_limit(matrix)
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xlabel("text", fontsize=9)
    axes.set_ylabel("image", fontsize=9)
    figure.colorbar(drawn, shrink=0.8)
    return figure


def write_figures(run):
    """Write the figures of an opened run to its folder `figures`, as PNG, and return their paths."""
    drawn = curve_figures(run.log) | {"similarity": similarity_figure(run.final.similarity().detach())}
    pictures = {}
    for name, figure in drawn.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=300, metadata={"Software": None})
        pictures[name] = buffer.getvalue()
    for name, synthetic in {"images_initial": run.initial, "images_learned": run.final}.items():
        if synthetic is not None:
            grid = make_grid(synthetic.pixels(), nrow=10, padding=2, pad_value=1.0)
            pictures[name] = encode(to_picture(grid))
    pictures["pairs"] = encode(draw_pairs(run), optimize=True)
    paths = []
    for name, data in pictures.items():
        paths.append(run.folder / "figures" / f"{name}.png")
        with atomic_path(paths[-1]) as partial:
            partial.write_bytes(data)
    return paths

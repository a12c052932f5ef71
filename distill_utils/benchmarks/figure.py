"""The table of `matching` as a figure."""

from pathlib import Path

from matplotlib.figure import Figure

from distill_utils.benchmarks.matching import cell_name
from distill_utils.runs.writing import atomic_path

_COLOURS = {"reference": "#9aa0a6", "unroll": "#9aa0a6", "every-step": "#9aa0a6", "ours": "#1a73e8"}


def draw_matching(result, path):
    """Seconds and memory of an outer step, beside T plain training steps; the path says the format."""
    cells = [cell for cell in result["cells"] if "error" not in cell]
    cells.sort(key=lambda cell: -cell["seconds"])
    names = [cell_name(cell["scheme"], cell["gradient"], cell["second_order"]) for cell in cells]
    figure = Figure(figsize=(10, 0.38 * len(cells) + 1.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = (("seconds", 1, "seconds per outer step"), ("peak_mb", 1024, "peak memory, GiB"))
    for axes, (key, scale, label) in zip(panels, labels):
        values = [cell[key] / scale for cell in cells]
        bars = axes.barh(names, values, color=[_COLOURS[cell["scheme"]] for cell in cells])
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        floor = result["training"][key] / scale
        axes.axvline(floor, color="#d93025", linewidth=1, label=f"T training steps: {floor:.2f}")
        axes.set(xlabel=label, xlim=(0, 1.15 * max(values)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    settings, machine = result["settings"], result["machine"]
    title = (
        f"{settings['image_encoder']}, {settings['image_size']} px, batch {settings['mini_batch_size']}, "
        f"T = {settings['syn_steps']}; {machine['device']}, torch {machine['torch']}"
    )
    panels[0].set_title(title, fontsize=9, loc="left")
    with atomic_path(path) as partial:
        figure.savefig(partial, format=Path(path).suffix.removeprefix(".") or "svg")

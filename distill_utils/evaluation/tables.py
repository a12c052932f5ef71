"""Results as aligned text and as Markdown."""

from scipy import stats

from distill_utils.evaluation.protocols import METRICS, PROTOCOLS


def confidence(cell):
    """Half the width of the 95 % confidence interval of a mean, from Student's t; NaN for a single value."""
    n = cell["n"]
    return float(stats.t.ppf(0.975, n - 1)) * cell["std"] / n**0.5 if n > 1 else float("nan")


def _text(cell):
    return f"{cell['mean']:.1f} ± {cell['std']:.1f}"


def format_table(rows):
    """Aligned text of {name: result}: mean +- std of every metric by the val protocol, its r_mean's 95 %
    interval, r_mean by the other protocols, the number of students, and the storage in numbers of plain pairs
    where it is known.
    """
    header = ["", *METRICS, "95 %", "last", "best", "n", "plain pairs"]
    lines = [
        [name, "diverged", *[""] * (len(header) - 2)]
        if "diverged" in result
        else [
            name,
            *(_text(result[key]) for key in METRICS),
            f"± {confidence(result['r_mean']):.1f}",
            *(_text(result["protocols"][protocol]["r_mean"]) for protocol in ("last", "best")),
            str(result["r_mean"]["n"]),
            f"{result['storage']:.2f}" if "storage" in result else "",
        ]
        for name, result in rows.items()
    ]
    return aligned(header, lines)


def format_breakdown(groups):
    """Aligned text of a result's "breakdown"."""
    keys = [[key for key in cells if key != "queries"] for cells in groups.values()]
    lines = [
        [group, str(cells["queries"]), *(_text(cells[key]) for key in own)]
        for (group, cells), own in zip(groups.items(), keys)
    ]
    return aligned(["queries", "number", "R@1", "R@5", "R@10"], lines)


def aligned(header, rows):
    """Aligned text; the first column to the left."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    )


def markdown(rows):
    """The table as Markdown: every metric, the 95 % interval of the mean recall, and it by the other
    protocols.
    """
    others = [protocol for protocol in PROTOCOLS if protocol != "val"]
    text = lambda cell: f"{cell['mean']:.1f} ± {cell['std']:.1f}"  # noqa: E731
    lines = [
        f"| | {' | '.join(METRICS)} | 95 % | {' | '.join(others)} | n |",
        "|---" * (len(METRICS) + len(others) + 3) + "|",
    ]
    for name, row in rows.items():
        cells = [text(row[key]) for key in METRICS] + [f"± {confidence(row['r_mean']):.1f}"]
        cells += [text(row["protocols"][protocol]["r_mean"]) for protocol in others]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['r_mean']['n']} |")
    return "\n".join(lines)

"""Results as aligned text and as Markdown."""

from distill_utils.evaluation.protocols import METRICS, PROTOCOLS


def confidence(cell):
    """Half the width of the 95 % confidence interval of a mean, from Student's t; None for a single value."""
    from scipy import stats  # here, so that distilling does not load it

    n = cell["n"]
    return float(stats.t.ppf(0.975, n - 1)) * cell["std"] / n**0.5 if n > 1 else None


def cell_text(cell):
    """`mean ± std`."""
    return f"{cell['mean']:.1f} ± {cell['std']:.1f}"


def interval_text(cell):
    """`± half the interval`; nothing where one value has none."""
    half = confidence(cell)
    return "" if half is None else f"± {half:.1f}"


def format_table(rows):
    """Aligned text of {name: result}: mean +- std of every metric by the val protocol, its r_mean's 95 %
    interval, r_mean by the other protocols, the number of students, and the storage in numbers of plain pairs
    where it is known.
    """
    header = ["", *METRICS, "95 %", "last", "best", "n", "plain pairs"]
    lines = []
    for name, result in rows.items():
        if "diverged" in result:
            lines.append([name, "diverged", *[""] * (len(header) - 2)])
            continue
        others = (result["protocols"][protocol]["r_mean"] for protocol in ("last", "best"))
        r_mean, storage = result["r_mean"], result.get("storage")
        cells = [*(cell_text(result[key]) for key in METRICS), interval_text(r_mean), *map(cell_text, others)]
        lines.append([name, *cells, str(r_mean["n"]), "" if storage is None else f"{storage:.2f}"])
    return aligned(header, lines)


def format_breakdown(groups):
    """Aligned text of a result's "breakdown"."""
    lines = []
    for group, cells in groups.items():
        recalls = (cell_text(cell) for key, cell in cells.items() if key != "queries")
        lines.append([group, str(cells["queries"]), *recalls])
    return aligned(["queries", "number", "R@1", "R@5", "R@10"], lines)


def aligned(header, rows):
    """Aligned text; the first column to the left."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]

    def padded(line):
        cells = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        return "  ".join([line[0].ljust(widths[0]), *cells])

    return "\n".join(map(padded, lines))


def markdown(rows):
    """The table as Markdown: every metric, the 95 % interval of the mean recall, and it by the other
    protocols.
    """
    others = [protocol for protocol in PROTOCOLS if protocol != "val"]
    columns = [*METRICS, "95 %", *others, "n"]
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [cell_text(row[key]) for key in METRICS] + [interval_text(row["r_mean"])]
        cells += [cell_text(row["protocols"][protocol]["r_mean"]) for protocol in others]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['r_mean']['n']} |")
    return "\n".join(lines)

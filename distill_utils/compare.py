"""Many runs in one table, a row for those that differ by their seed alone: `python -m distill_utils.compare
logged_files/toy/*_seed*`.
"""

import argparse
import re
import sys
from pathlib import Path

from distill_utils.evaluation.protocols import summarise_runs
from distill_utils.evaluation.tables import format_table, markdown
from distill_utils.pages.rows import set_rows
from distill_utils.pages.templates import escape_markdown
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.signals import run_program
from distill_utils.synthetic.checkpoint import find_checkpoint, saved_sets
from distill_utils.synthetic.set import SyntheticSet


def headline(run):
    """The result of a run's set that was chosen on val: that of `distill_utils.evaluate` if it was called,
    else the run's own. UserError where there is none.
    """
    folder, notes = Path(run), []
    results = read_json(folder / "results.json", {})
    if folder.is_dir() and saved_sets(folder):
        path = find_checkpoint(folder)
        synthetic = SyntheticSet.load(path)
    else:  # the numbers alone were kept
        path, synthetic = folder / f"distilled_{results.get('selected_step')}.pt", None
    rows = set_rows(results, path, synthetic, notes)
    row = rows.get("distilled") or rows.get("while distilling")
    if not row or not row["protocols"]:
        reason = " ".join(notes) or "evaluate the run first."
        raise UserError(f"{run} holds no results.json with a result of {path.name}: {reason}")
    return row


def group_runs(runs):
    """{name without its _seedN: summary over its runs}, in the order given; UserError for a run without a
    result.
    """
    groups = {}
    for run in runs:
        groups.setdefault(re.sub(r"_seed\d+$", "", Path(run).name), []).append(headline(run))
    rows = {}
    for name, results in groups.items():
        storage = {round(result["storage"], 2) for result in results if result["storage"] is not None}
        rows[name] = summarise_runs(results) | ({"storage": storage.pop()} if len(storage) == 1 else {})
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    rows = group_runs(args.runs)
    print(
        "test recall in %, epoch and outer step chosen on val, mean ± standard deviation over n runs "
        "(each the mean of its students)"
    )
    print(
        markdown({escape_markdown(name): row for name, row in rows.items()})
        if args.markdown
        else format_table(rows)
    )
    return rows


if __name__ == "__main__":
    sys.exit(run_program(main))

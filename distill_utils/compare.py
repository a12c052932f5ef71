"""Many runs in one table, a row for those that differ by their seed alone: `python -m distill_utils.compare
logged_files/toy/*_seed*`.
"""

import argparse
import re
import sys
from pathlib import Path

from distill_utils.evaluation.protocols import selected_evaluation, summarise_runs
from distill_utils.evaluation.tables import format_table, markdown
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json
from distill_utils.runs.signals import run_program


def headline(run):
    """A run's result: that of `distill_utils.evaluate` if it was called, else the evaluation of the outer
    step chosen on val.
    """
    results = read_json(Path(run) / "results.json", {})
    if "distilled" in results:
        return results["distilled"]
    chosen = selected_evaluation(results)
    if not chosen:
        raise UserError(f"{run} holds no results.json with a result: evaluate the run first.")
    return chosen


def group_runs(runs):
    """{name without its _seedN: summary over its runs}, in the order given; UserError for a run without a
    result.
    """
    groups = {}
    for run in runs:
        groups.setdefault(re.sub(r"_seed\d+$", "", Path(run).name), []).append(headline(run))
    rows = {}
    for name, results in groups.items():
        storage = {round(result["storage"], 2) for result in results if "storage" in result}
        rows[name] = summarise_runs(results) | ({"storage": storage.pop()} if len(storage) == 1 else {})
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    rows = group_runs(args.runs)
    print(
        "test recall in %, epoch and outer step chosen on val, mean ± standard deviation over n runs (each the mean of its students)"
    )
    print(markdown(rows) if args.markdown else format_table(rows))
    return rows


if __name__ == "__main__":
    sys.exit(run_program(main))

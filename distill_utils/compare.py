"""Many runs in one table, a row for those that differ by their seed alone: `python -m distill_utils.compare
logged_files/toy/*_seed*`.
"""

import argparse
import re
import sys
from pathlib import Path

from distill_utils.evaluation.protocols import summarise_runs
from distill_utils.evaluation.tables import format_table, markdown
from distill_utils.pages.rows import protocol_of, set_rows
from distill_utils.pages.templates import escape_markdown
from distill_utils.pages.values import words
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
    meta = {} if synthetic is None else synthetic.meta
    made = {"protocol": protocol_of(meta), "dataset": words(meta.get("dataset"))}
    return row | {key: row[key] or value for key, value in made.items()}


def group_runs(runs):
    """{(protocol, data set): {name without its _seedN: summary over its runs}}, in the order given: numbers
    of different protocols or test data do not compare. UserError for a run without a result.
    """
    groups = {}
    for run in runs:
        row, name = headline(run), re.sub(r"_seed\d+$", "", Path(run).name)
        groups.setdefault((row["protocol"], row["dataset"]), {}).setdefault(name, []).append(row)
    return {block: {name: _over(rows) for name, rows in named.items()} for block, named in groups.items()}


def _over(results):
    storage = {round(result["storage"], 2) for result in results if result["storage"] is not None}
    return summarise_runs(results) | ({"storage": storage.pop()} if len(storage) == 1 else {})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    args = parser.parse_args(argv)
    blocks = group_runs(args.runs)
    print(
        "test recall in %, epoch and outer step chosen on val, mean ± standard deviation over n runs "
        "(each the mean of its students)"
    )
    for (protocol, dataset), rows in blocks.items():
        print(f"\nprotocol {protocol or 'unknown'}, {dataset or 'unknown data'}")
        if args.markdown:
            print("\n" + markdown({escape_markdown(name): row for name, row in rows.items()}))
        else:
            print(format_table(rows))
    return blocks


if __name__ == "__main__":
    sys.exit(run_program(main))

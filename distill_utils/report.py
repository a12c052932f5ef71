"""One self-contained HTML page of a run, or its figures as PNG: `python -m distill_utils.report
logged_files/toy/quickstart [--png]`.
"""

import argparse
import sys

from distill_utils.pages.figures import write_figures
from distill_utils.pages.inputs import open_run
from distill_utils.pages.page import write_report
from distill_utils.runs.signals import run_program


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", help="a run's folder, with its distilled_*.pt")
    png = "also write the figures to RUN/figures, as PNG for a paper"
    parser.add_argument("--png", action="store_true", help=png)
    return parser


def main(argv=None):
    """The path of the page."""
    args = make_parser().parse_args(argv)
    run = open_run(args.run_dir)
    path = write_report(run)
    print(f"report: {path}")
    if args.png:
        print(f"figures: {', '.join(map(str, write_figures(run)))}")
    return path


if __name__ == "__main__":
    sys.exit(run_program(main))

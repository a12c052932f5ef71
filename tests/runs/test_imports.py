"""A program imports what it uses."""

import subprocess
import sys

import pytest
from commands import ROOT


def imported(statement):
    """The top-level names of all modules that a fresh process has after the statement."""
    command = [
        sys.executable,
        "-c",
        f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})",
    ]
    return set(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split())


@pytest.mark.parametrize(
    "module", "flags reading writing locks errors signals processes world provenance outline dropped".split()
)
def test_what_serves_pools_too_needs_no_torch(module):
    assert not imported(f"import distill_utils.runs.{module}") & {
        "torch",
        "transformers",
        "timm",
        "torchvision",
    }

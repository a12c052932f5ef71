"""A program imports what it uses."""

import ast
import subprocess
import sys

import pytest
from commands import ROOT
from test_architecture import sources


def imported(statement):
    """The top-level names of all modules that a fresh process has after the statement."""
    command = [
        sys.executable,
        "-c",
        f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})",
    ]
    return set(subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split())


def test_distilling_needs_no_tables_and_no_figures():
    # transformers takes SciPy where it finds it: what our modules ask for is read from them.
    assert not imported("import distill_lors") & {"pyarrow", "matplotlib"}
    for module, file in sources().items():
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", ())] + [getattr(node, "module", "") or ""]
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert not any(name.split(".")[0] == "scipy" for name in names), module


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

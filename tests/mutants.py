"""Does a test notice? `python tests/mutants.py [-k WORD]` makes mutations.py's changes, one at a time.

Each is made in a copy of the tree, in which its tests are run. Exit status 1 if one survives, if its text is
no longer in its file, or if its tests fail without it too.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import timm  # noqa: F401
import torch
import torchvision  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent


def copy_tree(folder):
    """The tree's Python files and what the tests need, in `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def status(folder, tests):
    """pytest's exit status: 0 if all pass, 1 if one fails, others if they could not be run."""
    pid = os.fork()  # with what takes longest to import already there
    if not pid:
        signal.alarm(600)
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        sys.path[0], sys.dont_write_bytecode = str(folder), True
        os._exit(pytest.main(["-x", "-p", "no:cacheprovider", *tests.split()]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tried(folder, file, tests, text, replacement):
    """What became of one mutation, in a word; the copy is as it was afterwards."""
    path = folder / file
    whole = path.read_text()
    if whole.count(text) != 1:
        return f"NOT FOUND ({whole.count(text)} times in {file})"
    path.write_text(whole.replace(text, replacement))
    try:
        result = status(folder, tests)
    finally:
        path.write_text(whole)
    return {0: "SURVIVED", 1: "killed"}.get(result, f"BROKEN (pytest ends with {result})")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-k",
        default="",
        metavar="WORD",
        help="only mutations with this in their name or in that of their file",
    )
    word = parser.parse_args(argv).k
    chosen = [
        (name, file, tests, change)
        for file, tests, changes in MUTATIONS
        for name, change in changes.items()
        if word in name or word in file
    ]
    torch.set_num_threads(1)  # and no work here, so that there are no threads that a fork would lose
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        copy_tree(folder)
        names = sorted({name for _, _, tests, _ in chosen for name in tests.split()})
        if chosen and status(folder, " ".join(names)):
            print(f"these fail as the tree is: {' '.join(names)}")
            return 1
        fates = []
        for name, file, tests, change in chosen:
            fates.append(tried(folder, file, tests, *change))
            print(f"{fates[-1]:9} {name}", flush=True)
    print(f"{fates.count('killed')} of {len(fates)} killed")
    return int(not fates or set(fates) != {"killed"})


if __name__ == "__main__":
    sys.exit(main())

"""The README and the pages of docs/: their code blocks, links and headings, and how Python in them is run."""

import re
import sys
import types
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

from commands import ROOT

from data.karpathy import DATASETS
from distill_utils.distillation.objectives import OBJECTIVES
from distill_utils.selection.coresets import CORESETS
from distill_utils.training.losses import LOSSES
from networks import image_encoders, text_encoders

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
_TABLES = (LOSSES, CORESETS, OBJECTIVES, DATASETS, image_encoders._ALIASES, text_encoders._ALIASES)


class Block(NamedTuple):
    """A fenced block of a page: its language, the heading it stands under, and its text."""

    language: str
    heading: str
    text: str


def blocks(page):
    """The fenced blocks of a page, in order."""
    found, heading, open_block = [], "", None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if open_block is None:
                open_block = (line[3:], [])
            else:
                found.append(Block(open_block[0], heading, "\n".join(open_block[1]) + "\n"))
                open_block = None
        elif open_block is not None:
            open_block[1].append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")
    assert open_block is None, f"{page} has a block without an end"
    return found


def prose(page):
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@contextmanager
def run_block(text):
    """A block of Python as a module; what it adds to the project's tables is there until the end."""
    module = types.ModuleType("block_of_a_page")
    with ExitStack() as stack:
        for table in (*_TABLES, sys.modules):
            stack.enter_context(mock.patch.dict(table))
        sys.modules[module.__name__] = module
        exec(compile(text, module.__name__, "exec"), vars(module))
        yield module

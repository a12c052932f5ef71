"""Cells in processes of their own."""

import multiprocessing
import os
import signal

from distill_utils.benchmarks import cells
from distill_utils.runs.errors import UserError


def _killed():
    os.kill(os.getpid(), signal.SIGKILL)


def _raises():
    raise UserError("a sentence\nand more")


def test_a_cell_that_dies_costs_only_its_row():
    assert "out of memory" in cells.in_own_process(_killed)["error"]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    cells.send_result(sender, _raises, ())
    assert receiver.recv() == {"error": "a sentence"}

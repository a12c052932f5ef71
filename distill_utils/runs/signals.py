"""SIGINT and SIGTERM as an exception that passes no block whose effects belong together; a program's exit
status.
"""

import os
import signal
import sys
from contextlib import contextmanager

from distill_utils.runs.errors import UserError, first_line


class Interrupted(BaseException):
    """SIGINT or SIGTERM, raised wherever the program stands; what is to be kept is saved on the way out."""


class _Signals:
    """SIGINT and SIGTERM as `Interrupted`, at once or when an undisturbed block is over."""

    def __init__(self):
        self._process, self._depth, self._waiting = None, 0, None

    def install(self):
        self._process = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._arrived)

    def _arrived(self, number, frame):
        if os.getpid() != self._process:  # a worker of a data loader: it ends with its parent
            return
        if self._depth:
            self._waiting = number
        else:
            raise Interrupted(number)

    @contextmanager
    def undisturbed(self):
        """A block whose effects belong together."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise Interrupted(number)


_signals = _Signals()


undisturbed = _signals.undisturbed


def run_program(main, batch_flag=None):
    """Exit status of `main(sys.argv[1:])`; a mistake, a refusal of the system and a lack of memory are one
    line on stderr and status 2, a signal n is status 128 + n.

    batch_flag: of this program, what makes it use less memory.
    """
    _signals.install()
    try:
        main(sys.argv[1:])
    except Interrupted as interruption:
        (number,) = interruption.args
        print(
            f"interrupted by {signal.Signals(number).name}; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + number
    except Exception as error:
        sentence = _sentence(error, batch_flag)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 2
    return 0


def _sentence(error, batch_flag):
    """What the user is told of an error that is not a mistake of this code; None for one that is."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or first_line(error)}."
    what = _lacking(error)
    if what is None:
        return None
    less = f"lower {batch_flag}, or add --grad_checkpointing" if batch_flag else "give it less at a time"
    return f"{what} ({first_line(error)}): {less}."


def _lacking(error):
    torch = sys.modules.get("torch")  # its errors are there only where it was imported
    if torch and isinstance(error, torch.OutOfMemoryError):
        return "The GPU's memory is full"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return "This machine's memory is full"
    return None

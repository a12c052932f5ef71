"""SIGINT and SIGTERM as an exception that passes no block whose effects belong together; a program's exit
status.
"""

import os
import signal
import sys
from contextlib import contextmanager

from distill_utils.runs.errors import UserError


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


def run_program(main):
    """Exit status of `main(sys.argv[1:])`; a UserError is one line on stderr and status 2, a signal n is
    status 128 + n.
    """
    _signals.install()
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interruption:
        (number,) = interruption.args
        print(
            f"interrupted by {signal.Signals(number).name}; the same command goes on from here",
            file=sys.stderr,
        )
        return 128 + number
    return 0

"""The exception for a user's mistake: its message is a whole sentence and is all that the user sees."""


class UserError(ValueError):
    """Bad input: say the bad value, what was expected, and where it came from."""


def require(holds, sentence):
    """UserError of the sentence unless it holds."""
    if not holds:
        raise UserError(sentence)


def first_line(error):
    """What an exception says, in one line: many carry pages."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Diverged(UserError):
    """A training left the finite numbers."""

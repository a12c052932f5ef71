"""The exception for a user's mistake: its message is a whole sentence and is all that the user sees."""


class UserError(ValueError):
    """Bad input: say the bad value, what was expected, and where it came from."""


class Diverged(UserError):
    """A training left the finite numbers."""

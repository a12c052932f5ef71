"""Values that files hold as a page can show them: numbers made numbers, strings made lines."""

_LONGEST = 400  # characters of a name


def number(value, low=-1e100, high=1e100):
    """A number of a file as a float; None for anything else, a truth value, NaN and the absurd included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        return None
    return float(value)


def sentence(value):
    """A string of a file such that UTF-8 can hold it; None for anything else."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def words(value, longest=_LONGEST):
    """A string of a file in one line, cut where it is very long; None for anything else."""
    if not isinstance(value, str):
        return None
    line = " ".join(sentence(value).split())
    return line if len(line) <= longest else line[:longest] + " …"


def fact(value):
    """A word or a number of a file in one line; None for anything else."""
    return words(value) if number(value) is None else f"{value:.6g}"


def mapping(value):
    return value if isinstance(value, dict) else {}

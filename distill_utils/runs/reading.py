"""Reading files that others may have written: whatever is wrong with one ends in a sentence that names it.

Sizes are looked at before anything is made: no file takes more memory than some tens of times its own size.
"""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from distill_utils.runs.errors import UserError, first_line

_LARGEST_JSON = 1 << 28  # bytes
_LARGEST_YAML = 1 << 24
_KINDS = {dict: "keys and values", list: "a list"}


@contextmanager
def speaking(path, how=""):
    """A block that reads `path`, near or far: what goes wrong in it is a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (
        Exception
    ) as error:  # a broken file surfaces as any of a dozen types, and every file system has its own
        raise UserError(f"{path} cannot be read{how}: {first_line(error)}") from error


def _read_text(path, largest):
    """FileNotFoundError where there is none."""
    size = Path(path).stat().st_size
    if size > largest:
        raise UserError(f"{path} has {size:,} bytes, more than the {largest:,} that such a file may have.")
    return Path(path).read_text(encoding="utf-8")


def read_json(path, default=None):
    """The file's value, or `default` if there is no such file; UserError for a value of another type than a
    `default` that is a dict or a list.
    """
    try:
        value = json.loads(_read_text(path, _LARGEST_JSON))
    except (FileNotFoundError, NotADirectoryError):
        return default
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {first_line(error)}.") from None
    if type(default) in _KINDS and not isinstance(value, type(default)):
        raise UserError(f"{path} must hold {_KINDS[type(default)]}, not {type(value).__name__}.")
    return value


def read_json_lines(path):
    """[(line number from 1, value)] of a file of JSON lines, without its empty lines; UserError names the
    first line that is none.
    """
    try:
        lines = _read_text(path, _LARGEST_JSON).split(
            "\n"
        )  # a string may hold what else splitlines splits at
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values += [(number, json.loads(line))] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is no JSON: {first_line(error)}.") from None
    return values


class _Loader(yaml.SafeLoader):
    """Without aliases, of which a few hundred characters can name gigabytes."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"it uses the alias *{self.peek_event().anchor}, which is not read here")
        return super().compose_node(parent, index)


def read_yaml(path):
    """The file's keys and values, empty where there is no file."""
    try:
        values = yaml.load(_read_text(path, _LARGEST_YAML), Loader=_Loader)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must hold keys and values.")
    return values


def read_array(path, mmap_mode=None):
    """The array of a .npy, in this machine's byte order. Nothing is made before the header agrees with the
    file's size.
    """
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else _read_header_2
            shape, _, dtype = read(file)
            claimed, held = int(np.prod([dtype.itemsize, *shape], dtype=object)), _left(file)
        if dtype.hasobject or min(shape, default=0) < 0 or claimed != held:
            raise ValueError(f"its header claims {claimed:,} bytes of {dtype}, and it holds {held:,}.")
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a .npy: {first_line(error)}") from None
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _read_header_2(file):
    return np.lib.format.read_array_header_2_0(file)


def _left(file):
    here = file.tell()
    return file.seek(0, 2) - here


def read_indices(path):
    """A .npy of distinct whole numbers, such as a coreset's indices.npy, as int64 [n]."""
    array = read_array(path)
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise UserError(f"{path} does not hold the numbers of train pairs, whole numbers in one dimension.")
    if len(np.unique(array)) != len(array):
        raise UserError(f"{path} names a train pair more than once.")
    return array.astype(np.int64)

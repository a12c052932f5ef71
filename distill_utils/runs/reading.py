"""Reading files that others may have written: whatever is wrong with one ends in a sentence that names it."""

import json
from pathlib import Path

import numpy as np
import yaml

from distill_utils.runs.errors import UserError, first_line


def read_json(path, default=None):
    """The file's value, or `default` if there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}.") from None


def read_yaml(path):
    """The file's keys and values, empty where there is no file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold keys and values.")
    return values


def read_indices(path):
    """A .npy of distinct whole numbers, such as a coreset's indices.npy, as int64 [n]."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a .npy of pair numbers: {first_line(error)}") from None
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        raise UserError(f"{path} does not hold the numbers of train pairs, whole numbers in one dimension.")
    if len(np.unique(array)) != len(array):
        raise UserError(f"{path} names a train pair more than once.")
    return array.astype(np.int64)

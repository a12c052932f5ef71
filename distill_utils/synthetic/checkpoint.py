"""Which file of a run holds its set, which results are of it, and whether it fits a task."""

import re
from pathlib import Path

from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json


def find_checkpoint(path):
    """The file itself, or of a run's folder the set that was best on val (the last one where nothing was
    evaluated).
    """
    path = Path(path)
    if not path.is_dir():
        return path
    sets = saved_sets(path)
    if not sets:
        raise UserError(f"{path} holds no distilled_*.pt.")
    step = read_json(path / "results.json", {}).get("selected_step", max(sets))
    if type(step) is not int or step not in sets:
        chosen = f"{path / 'results.json'} names {step!r:.20} as the outer step chosen on val"
        raise UserError(f"{chosen}, of which there is no set.")
    return sets[step]


def saved_sets(folder):
    """{outer step: file} of the sets in a run's folder."""
    matches = ((re.fullmatch(r"distilled_(\d+)\.pt", file.name), file) for file in Path(folder).iterdir())
    return {int(match[1]): file for match, file in matches if match}


def belongs_to(row, path, synthetic):
    """Whether a row of results.json is of the set `synthetic` in the file `path`: by its digest, or by the
    file's name where the row has none or the set is None. A row that names neither is of no set.
    """
    if "digest" in row and synthetic is not None:
        return row["digest"] == synthetic.digest()
    return row.get("file") == Path(path).name


def require_fits(synthetic, task, path):
    """UserError unless the set's texts are embeddings of the task's text encoder and its images have the
    task's size.
    """
    if synthetic.texts.shape[1] != task.text_dim:
        raise UserError(
            f"{path} holds text embeddings of width {synthetic.texts.shape[1]}, but --text_encoder "
            f"{task.text_encoder} "
            f"gives {task.text_dim}: evaluate with the text encoder of the set "
            f"({synthetic.meta.get('text_encoder', 'unknown')})."
        )
    made_with = synthetic.meta.get("text_fingerprint", task.text_fingerprint)
    if made_with != task.text_fingerprint:
        raise UserError(
            f"{path} was made with other weights of the text encoder ({synthetic.meta['text_encoder']}) than "
            f"--text_encoder {task.text_encoder} has here."
        )
    if synthetic.images.shape[-1] != task.image_size:
        raise UserError(
            f"{path} holds images of {synthetic.images.shape[-1]} pixels, but --image_size is "
            f"{task.image_size}."
        )

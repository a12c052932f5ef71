"""The files of a run as the pages take them: checked, and what is damaged named and left out."""

import json
from dataclasses import dataclass
from pathlib import Path

from distill_utils.pages.rows import set_rows
from distill_utils.pages.values import mapping, number, sentence
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json, read_yaml
from distill_utils.synthetic.checkpoint import saved_sets
from distill_utils.synthetic.set import SyntheticSet


def read_log(path, notes):
    """The lines of the run's own curves, {"step": number, key: number}; what is no number is left out.

    A line that is not whole is passed over: a killed run leaves one.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"log.jsonl cannot be read: {error.strerror}.")
        return []
    lines = []
    for text_line in text.splitlines():
        try:
            line = mapping(json.loads(text_line))
        except (ValueError, RecursionError):
            continue
        numbers = {key: number(value) for key, value in line.items()}
        if numbers.get("step") is not None and line.get("program") != "evaluate":
            lines.append({key: value for key, value in numbers.items() if value is not None})
    return lines


def read_nearest(folder, step, count, notes):
    """Of nearest.json, if it is of this outer step: per learned text a list of {"caption", "cosine"}, nearest
    first; empty otherwise.
    """
    try:
        noted = read_json(folder / "nearest.json")
    except UserError as error:
        notes.append(str(error))
        return []
    if noted is None or isinstance(noted, dict) and noted.get("step", step) != step:
        return []
    listed = mapping(noted).get("captions")
    found = [_captions(near) for near in listed] if isinstance(listed, list) else []
    if len(found) != count or None in found:
        notes.append("nearest.json is damaged and left out.")
        return []
    return found


def _captions(near):
    entries = [
        {
            "caption": sentence(mapping(one).get("caption")),
            "cosine": number(mapping(one).get("cosine"), -1.01, 1.01),
        }
        for one in (near if isinstance(near, list) else [None])
    ]
    return None if any(None in entry.values() for entry in entries) else entries


def read_arguments(path, notes):
    """The keys and values of a run's arguments; empty where they cannot be read."""
    try:
        return read_yaml(path)
    except UserError as error:
        notes.append(str(error))
        return {}


def source_captions(synthetic, notes):
    """What each learned text began as, a caption or None for noise; empty where the set does not say."""
    captions = synthetic.meta.get("source_captions")
    if captions is None:
        return []
    listed = captions if isinstance(captions, (list, tuple)) else []
    if len(listed) != len(synthetic) or not all(c is None or isinstance(c, str) for c in listed):
        notes.append("The set's source captions are damaged and left out.")
        return []
    return [sentence(caption) for caption in listed]


def plain_meta(synthetic, notes):
    """The set's meta as far as JSON can hold it: words, numbers and lists of them."""
    plain = {key: _plain(value) for key, value in synthetic.meta.items() if isinstance(key, str)}
    left = {key: value for key, value in plain.items() if value is not None or synthetic.meta[key] is None}
    if len(left) < len(synthetic.meta):
        notes.append("What the set's meta holds besides words, numbers and lists of them is left out.")
    return left


def _plain(value):
    """A value with which JSON can do something; None for others."""
    if isinstance(value, (list, tuple)):
        values = [_plain(one) for one in value]
        return values if all(v is not None or one is None for v, one in zip(values, value)) else None
    if isinstance(value, bool):
        return value
    return sentence(value) if number(value) is None else value


@dataclass
class OpenedRun:
    """What a run's folder holds of what the page shows. notes: what could not be shown, and why."""

    folder: Path
    step: int  # outer step of the set that is shown
    initial: SyntheticSet | None
    final: SyntheticSet
    rows: dict
    log: list
    nearest: list
    sources: list
    arguments: dict
    evaluated_with: dict
    notes: list


def _initial_set(sets, step, notes):
    """The set of step 0, None where it is the one that is shown, or none is there."""
    try:
        return SyntheticSet.load(sets[0]) if 0 in sets and step != 0 else None
    except UserError as error:
        notes.append(str(error))
        return None


def open_run(run_dir):
    """The run in a folder, with the set that was best on val; UserError where there is no set."""
    folder, notes = Path(run_dir), []
    if not folder.is_dir():
        raise UserError(f"{run_dir} is not a run's folder.")
    try:
        results = read_json(folder / "results.json", {})
    except UserError as error:
        notes.append(str(error))
        results = {}
    sets = saved_sets(folder)
    if not sets:
        raise UserError(f"{run_dir} holds no distilled_*.pt to report on.")
    step = results.get("selected_step", max(sets))
    if type(step) is not int or step not in sets:
        notes.append(f"results.json names no set as the one chosen on val: {sets[max(sets)].name} is shown.")
        step = max(sets)
    final = SyntheticSet.load(sets[step])
    return OpenedRun(
        folder=folder,
        step=step,
        initial=_initial_set(sets, step, notes),
        final=final,
        rows=set_rows(results, sets[step], final, notes),
        log=read_log(folder / "log.jsonl", notes),
        nearest=read_nearest(folder, step, len(final), notes),
        sources=source_captions(final, notes),
        arguments=read_arguments(folder / "args.yaml", notes),
        evaluated_with=read_arguments(folder / "evaluate_args.yaml", notes),
        notes=notes,
    )

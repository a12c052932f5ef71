"""The files of a run as the pages take them: checked, what is damaged named and left out."""

import json
from dataclasses import dataclass
from pathlib import Path

from distill_utils.evaluation.protocols import METRICS, PROTOCOLS
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_json, read_yaml
from distill_utils.synthetic.checkpoint import belongs_to, saved_sets
from distill_utils.synthetic.set import SyntheticSet

ROWS = (
    "random",
    "random_same_loss",
    "distilled",
    "full",
)  # of results.json, in the order in which they are shown
_LONGEST = 400  # characters of a name


# --- values ---


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


def _mapping(value):
    return value if isinstance(value, dict) else {}


# --- results.json ---


def read_results(folder):
    """results.json as a dict, empty where there is none; UserError where it is anything else."""
    path = Path(folder) / "results.json"
    results = read_json(path, {})
    if not isinstance(results, dict):
        raise UserError(f"{path} does not hold results: expected a JSON object.")
    return results


def _cell(value):
    value = _mapping(value)
    mean, std = (number(value.get(key), 0, 100) for key in ("mean", "std"))
    n = number(value.get("n"), 1, 1e6)
    return None if None in (mean, std, n) else {"mean": mean, "std": std, "n": int(n)}


def _recalls(value):
    cells = {metric: _cell(_mapping(value).get(metric)) for metric in METRICS}
    return None if None in cells.values() else cells


def read_result(row):
    """What is shown of a row of results.json; None where it is damaged.

    {metric: cell, "protocols": {protocol: {metric: cell}}, "storage", "dataset"}; a cell is {"mean", "std",
    "n"}, and "protocols" is empty where the row has none.
    """
    protocols = _mapping(row).get("protocols", {})
    if not isinstance(protocols, dict):
        return None
    protocols = {protocol: _recalls(protocols.get(protocol)) for protocol in PROTOCOLS if protocols}
    headline = protocols["val"] if protocols else _recalls(row)
    if headline is None or None in protocols.values():
        return None
    storage = number(_mapping(row).get("storage"), 0, 1e12)
    return headline | {"protocols": protocols, "storage": storage, "dataset": words(row.get("dataset"))}


def set_rows(results, path, synthetic, notes):
    """{name: checked row} of results.json for the set `synthetic` in the file `path`: ROWS, and, without
    a row "distilled", the run's own evaluation of it as "while distilling".

    What is damaged, or of another set, is said in `notes`.
    """
    named = _with_files(results)
    rows, others = {}, {}
    for name, row in named.items():
        checked = read_result(row)
        if checked is None:
            notes.append(f"The row {name!r} of results.json is damaged and left out.")
        elif belongs_to(row, path, synthetic):
            rows[name] = checked
        else:
            others[name] = words(row.get("file")) or "an unknown file"
    if others:
        of = ", ".join(f"{name} of {file}" for name, file in others.items())
        notes.append(f"Not shown, being of another set than {path.name}: {of}.")
    if "distilled" not in rows and (own := _own_evaluation(results, path, synthetic)):
        rows["while distilling"] = own
    return rows


def _with_files(results):
    """ROWS of results.json. Those that do not say which file they are of, as earlier versions wrote them, get
    the one that everything else in results.json names, if that is one.
    """
    rows = {name: results[name] for name in ROWS if name in results}
    files = {row["file"] for row in map(_mapping, rows.values()) if isinstance(row.get("file"), str)}
    selected = results.get("selected_step")
    files |= {f"distilled_{selected}.pt"} if type(selected) is int else set()
    if len(files) != 1:
        return rows
    return {name: {"file": min(files)} | row if isinstance(row, dict) else row for name, row in rows.items()}


def _own_evaluation(results, path, synthetic):
    """The run's own test of a set, None where there was none."""
    evaluations = results.get("evaluations")
    for row in [*(evaluations if isinstance(evaluations, list) else []), results.get("selected")]:
        row = {"file": f"distilled_{_mapping(row).get('step')}.pt"} | _mapping(row)
        if "r_mean" in row and belongs_to(row, path, synthetic):
            return read_result(row)
    return None


def on_other_data(row, synthetic):
    """What to add to a row's name where its data are not those that the set was distilled from."""
    made_from = words(synthetic.meta.get("dataset"))
    return f", on {row['dataset']}" if row["dataset"] and made_from not in (None, row["dataset"]) else ""


# --- what else lies in a run's folder ---


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
            line = _mapping(json.loads(text_line))
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
    listed = _mapping(noted).get("captions")
    found = [_captions(near) for near in listed] if isinstance(listed, list) else []
    if len(found) != count or None in found:
        notes.append("nearest.json is damaged and left out.")
        return []
    return found


def _captions(near):
    entries = [
        {
            "caption": sentence(_mapping(one).get("caption")),
            "cosine": number(_mapping(one).get("cosine"), -1.01, 1.01),
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


# --- a run ---


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


def open_run(run_dir):
    """The run in a folder, with the set that was best on val; UserError where there is no set."""
    folder, notes = Path(run_dir), []
    if not folder.is_dir():
        raise UserError(f"{run_dir} is not a run's folder.")
    try:
        results = read_results(folder)
    except UserError as error:
        notes.append(str(error))
        results = {}
    sets = saved_sets(folder)
    if not sets:
        raise UserError(f"{run_dir} holds no distilled_*.pt to report on.")
    selected = results.get("selected_step")
    step = selected if type(selected) is int and selected in sets else max(sets)
    final = SyntheticSet.load(sets[step])
    return OpenedRun(
        folder=folder,
        step=step,
        initial=SyntheticSet.load(sets[0]) if 0 in sets and step != 0 else None,
        final=final,
        rows=set_rows(results, sets[step], final, notes),
        log=read_log(folder / "log.jsonl", notes),
        nearest=read_nearest(folder, step, len(final), notes),
        sources=source_captions(final, notes),
        arguments=read_arguments(folder / "args.yaml", notes),
        evaluated_with=read_arguments(folder / "evaluate_args.yaml", notes),
        notes=notes,
    )

"""Rows of a run's results.json: checked, and those that are of the set that is shown."""

from distill_utils.evaluation.protocols import METRICS, PROTOCOLS, ROWS
from distill_utils.pages.values import mapping, number, words
from distill_utils.synthetic.checkpoint import belongs_to
from distill_utils.training.protocol import protocol


def _cell(value):
    value = mapping(value)
    mean, std = (number(value.get(key), 0, 100) for key in ("mean", "std"))
    n = number(value.get("n"), 1, 1e6)
    return None if None in (mean, std, n) else {"mean": mean, "std": std, "n": int(n)}


def _recalls(value):
    cells = {metric: _cell(mapping(value).get(metric)) for metric in METRICS}
    return None if None in cells.values() else cells


def read_result(row):
    """What is shown of a row of results.json; None where it is damaged.

    {metric: cell, "protocols": {selection: {metric: cell}}, "storage", "dataset", "protocol"}; a cell is
    {"mean", "std", "n"}; "protocols" is empty where the row has none, "protocol" what trained, P1 or P2.
    """
    protocols = mapping(row).get("protocols", {})
    if not isinstance(protocols, dict):
        return None
    protocols = {protocol: _recalls(protocols.get(protocol)) for protocol in PROTOCOLS if protocols}
    headline = protocols["val"] if protocols else _recalls(row)
    if headline is None or None in protocols.values():
        return None
    storage = number(mapping(row).get("storage"), 0, 1e12)
    said = {"dataset": words(row.get("dataset")), "protocol": protocol_of(row)}
    return headline | {"protocols": protocols, "storage": storage} | said


def protocol_of(facts):
    """P1 or P2, of a set's meta or a row of results, as they say or as follows from what trained; else
    None.
    """
    trainable = facts.get("image_trainable")
    return words(facts.get("protocol")) or (protocol(trainable) if isinstance(trainable, bool) else None)


def set_rows(results, path, synthetic, notes):
    """{name: checked row} of results.json for the set `synthetic` in the file `path`: ROWS, and, without a
    row "distilled", the run's own evaluation of it as "while distilling".

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
    files = {row["file"] for row in map(mapping, rows.values()) if isinstance(row.get("file"), str)}
    selected = results.get("selected_step")
    files |= {f"distilled_{selected}.pt"} if type(selected) is int else set()
    if len(files) != 1:
        return rows
    return {name: {"file": min(files)} | row if isinstance(row, dict) else row for name, row in rows.items()}


def _own_evaluation(results, path, synthetic):
    """The run's own test of a set, None where there was none."""
    evaluations = results.get("evaluations")
    for row in [*(evaluations if isinstance(evaluations, list) else []), results.get("selected")]:
        row = {"file": f"distilled_{mapping(row).get('step')}.pt"} | mapping(row)
        if "r_mean" in row and belongs_to(row, path, synthetic):
            return read_result(row)
    return None


def on_other_data(row, synthetic):
    """What to add to a row's name where its data are not those that the set was distilled from."""
    made_from = words(synthetic.meta.get("dataset"))
    return f", on {row['dataset']}" if row["dataset"] and made_from not in (None, row["dataset"]) else ""

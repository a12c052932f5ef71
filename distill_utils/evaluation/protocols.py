"""Which epoch and which outer step a number belongs to, and means over students and over distillations."""

import statistics

METRICS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")
PROTOCOLS = ("val", "last", "best")
# The rows of results.json as they are shown: random real pairs by InfoNCE and by the set's loss, a control
# distilled with S = I, the set, the full data.
ROWS = ("random", "random_same_loss", "identity", "distilled", "full")


def choose_epochs(curve):
    """What is reported of a student, from its curve of {"epoch", "val", "test"}.

    val_r_mean, on_val: the recall on val at the epoch that is best there (the earliest of equals). Where test
    was measured too, its recall by each protocol: val, at that epoch; last, at the last one; best, the best
    test recall of any epoch, the published protocol, which selects on the test split.
    """
    chosen = max(curve, key=lambda point: point["val"]["r_mean"])
    result = {"val_r_mean": chosen["val"]["r_mean"], "on_val": chosen["val"]}
    if "test" not in chosen:
        return result
    best = max(curve, key=lambda point: point["test"]["r_mean"])
    return {"val": chosen["test"], "last": curve[-1]["test"], "best": best["test"]} | result


def summarise(values):
    """{"mean", "std", "n"} of numbers; the sample standard deviation, 0 for a single one."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "n": len(values)}


def _over(results, *keys):
    """{metric: summary} of one recall in each of the results, found under `keys`."""
    found = []
    for result in results:
        for key in keys:
            result = result[key]
        found.append(result)
    return {metric: summarise([recall[metric] for recall in found]) for metric in METRICS}


def summarise_students(students):
    """Means over students: on val under "on_val"; where test was measured the headline (protocol val) at top
    level and every protocol under its name; and the students themselves.
    """
    summary = {
        "on_val": _over(students, "on_val"),
        "val_r_mean": summarise([s["val_r_mean"] for s in students]),
    }
    if is_tested(students[0]):
        protocols = {protocol: _over(students, protocol) for protocol in PROTOCOLS}
        summary |= protocols["val"] | {"protocols": protocols}
        if "breakdown" in students[0]["val"]:
            summary["breakdown"] = _summarise_groups([student["val"]["breakdown"] for student in students])
    return summary | {"students": students}


def _summarise_groups(students):
    """{group: {"queries", metric: summary}} from each student's {group: {"queries", metric: recall}}."""
    return {
        group: {
            key: value if key == "queries" else summarise([student[group][key] for student in students])
            for key, value in cells.items()
        }
        for group, cells in students[0].items()
    }


def is_tested(result):
    """Whether a result, of a student or over students, has recall on test and not on val alone."""
    return "val" in result or "protocols" in result


def summarise_runs(results):
    """Mean and deviation over whole distillations: of each, the mean over its students is one value."""
    protocols = {
        protocol: {
            metric: summarise([result["protocols"][protocol][metric]["mean"] for result in results])
            for metric in METRICS
        }
        for protocol in PROTOCOLS
    }
    return protocols["val"] | {"protocols": protocols}


def selected_evaluation(results):
    """Of a run's results.json the test of the outer step chosen on val; None where there is none, as in a run
    that was stopped before its end.
    """
    candidates = [*results.get("evaluations", []), results.get("selected") or {}]
    chosen = (r for r in candidates if r.get("step") == results.get("selected_step") and is_tested(r))
    return next(chosen, None)

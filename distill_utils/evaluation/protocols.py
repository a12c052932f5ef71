"""Which epoch and which outer step a number belongs to, and means over students and over distillations."""

import statistics

METRICS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")


PROTOCOLS = ("val", "last", "best")


def choose_epochs(curve):
    """The recall that each protocol reports from a student's curve of {"epoch", "val", "test"}.

    val: the test recall at the epoch that is best on val (the earliest of equals). last: at the last epoch.
    best: the best test recall of any epoch, the published protocol, which selects on the test split.
    """
    chosen = {
        "val": max(curve, key=lambda point: point["val"]["r_mean"]),
        "last": curve[-1],
        "best": max(curve, key=lambda point: point["test"]["r_mean"]),
    }
    return {protocol: point["test"] for protocol, point in chosen.items()} | {
        "val_r_mean": chosen["val"]["val"]["r_mean"]
    }


def summarise(values):
    """{"mean", "std", "n"} of numbers; the sample standard deviation, 0 for a single one."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "n": len(values),
    }


def summarise_students(students):
    """The headline (protocol val) at top level, every protocol under its name, and the students themselves."""
    protocols = {
        protocol: {key: summarise([student[protocol][key] for student in students]) for key in METRICS}
        for protocol in PROTOCOLS
    }
    summary = protocols["val"] | {
        "protocols": protocols,
        "val_r_mean": summarise([student["val_r_mean"] for student in students]),
    }
    if "breakdown" in students[0]["val"]:
        groups = [student["val"]["breakdown"] for student in students]
        summary["breakdown"] = {
            group: {
                key: value
                if key == "queries"
                else summarise([of_student[group][key] for of_student in groups])
                for key, value in cells.items()
            }
            for group, cells in groups[0].items()
        }
    return summary | {"students": students}


def summarise_runs(results):
    """Mean and deviation over whole distillations: of each, the mean over its students is one value."""
    protocols = {
        protocol: {
            key: summarise([result["protocols"][protocol][key]["mean"] for result in results])
            for key in METRICS
        }
        for protocol in PROTOCOLS
    }
    return protocols["val"] | {"protocols": protocols}


def selected_evaluation(results):
    """Of a run's results.json the evaluation of the outer step chosen on val; None where there is none."""
    return next(
        (
            result
            for result in results.get("evaluations", [])
            if result["step"] == results.get("selected_step")
        ),
        None,
    )

"""The rows beside a distilled set: random real pairs, and the experts on the full data; learning rates chosen
on val.
"""

from functools import partial
from pathlib import Path

from tqdm import tqdm

from distill_utils.evaluation.protocols import choose_epochs, summarise_students
from distill_utils.runs.errors import Diverged
from distill_utils.runs.reading import read_json

# What real pairs choose from, for both towers, besides the learned rates of the set beside them.
RATES = (0.01, 0.03, 0.1, 0.3)
# How a learning rate is tried: by so many students, each measured so often and on val alone.
FEW = 2
BRIEFLY = {"measurements": 5, "splits": ("val",)}


def at_best_rates(look, test, rates, what):
    """test((image rate, text rate)) where look(the same) is best on val, and "rates": how each did.

    Rates at which a student diverges, in the look or in the test, are passed over in words. Raises Diverged
    if all are.
    """
    tried = [_tried(look, lrs, what) for lrs in dict.fromkeys(rates)]
    for row in sorted(tried, key=lambda row: row.get("val_r_mean", -1.0), reverse=True):
        if "diverged" in row:
            continue
        lrs = row["lr_img"], row["lr_txt"]
        try:
            return test(lrs) | {"rates": tried}
        except Diverged as error:
            row["diverged"] = _tell(what, lrs, error)
    at = ", ".join(f"{row['lr_img']:.3g}/{row['lr_txt']:.3g}" for row in tried)
    raise Diverged(f"Students on {what} diverged at all learning rates tried: {at} (image/text).")


def _tried(look, lrs, what):
    row = {"lr_img": lrs[0], "lr_txt": lrs[1]}
    try:
        return row | {"val_r_mean": look(lrs)["val_r_mean"]["mean"]}
    except Diverged as error:
        return row | {"diverged": _tell(what, lrs, error)}


def _tell(what, lrs, error):
    tqdm.write(f"{what}, learning rates {lrs[0]:.3g}, {lrs[1]:.3g}: {error}")
    return True


def random_baseline(draws, loss_type, rates, evaluate, run_all):
    """The row of random real pairs under a loss: a student on each draw, at the rates best on val.

    evaluate(synthetic, number, loss_type, lrs, **how) -> result of one student; run_all([functions]) -> their
    results.
    """

    def at(lrs, draws=draws, **how):
        runs = run_all(
            [partial(evaluate, pairs, number, loss_type, lrs, **how) for number, pairs in enumerate(draws)]
        )
        return runs[0] | summarise_students([student for run in runs for student in run["students"]])

    look = partial(at, draws=draws[:FEW], **BRIEFLY)
    return at_best_rates(look, at, rates, f"random pairs, {loss_type}")


def experts_row(folder):
    """The row `full`: the experts of a buffer folder, from the results that buffer.py left beside each; None
    where it left none, as in a published buffer.
    """
    files = sorted(Path(folder).glob("results_*.json"))
    return summarise_students([choose_epochs(read_json(file)["curve"]) for file in files]) if files else None

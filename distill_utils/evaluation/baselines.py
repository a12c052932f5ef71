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


def at_best_rates(evaluate, rates, what):
    """The result of evaluate((image rate, text rate)) at the rates best on val, and "rates": how each did.

    Rates at which a student diverges are passed over in words. Raises Diverged if all are.
    """
    results, tried = [], []
    for lrs in dict.fromkeys(rates):
        row = {"lr_img": lrs[0], "lr_txt": lrs[1]}
        try:
            result = evaluate(lrs)
        except Diverged as error:
            tqdm.write(f"{what}, learning rates {lrs[0]:.3g}, {lrs[1]:.3g}: {error}")
            tried.append(row | {"diverged": True})
            continue
        results.append(result)
        tried.append(row | {"val_r_mean": result["val_r_mean"]["mean"], "r_mean": result["r_mean"]["mean"]})
    if not results:
        at = ", ".join(f"{row['lr_img']:.3g}/{row['lr_txt']:.3g}" for row in tried)
        raise Diverged(f"Students on {what} diverged at all learning rates tried: {at} (image/text).")
    return max(results, key=lambda result: result["val_r_mean"]["mean"]) | {"rates": tried}


def random_baseline(draws, loss_type, rates, evaluate, run_all):
    """The row of random real pairs under a loss: a student on each of several draws, at the rates best on
    val.

    evaluate(synthetic, number, loss_type, lrs) -> result of one student; run_all([functions]) -> their
    results.
    """

    def at(lrs):
        runs = run_all(
            [partial(evaluate, pairs, number, loss_type, lrs) for number, pairs in enumerate(draws)]
        )
        return runs[0] | summarise_students([student for run in runs for student in run["students"]])

    return at_best_rates(at, rates, f"random pairs, {loss_type}")


def experts_row(folder):
    """The row `full`: the experts of a buffer folder, from the results that buffer.py left beside each; None
    where it left none, as in a published buffer.
    """
    files = sorted(Path(folder).glob("results_*.json"))
    return summarise_students([choose_epochs(read_json(file)["curve"]) for file in files]) if files else None

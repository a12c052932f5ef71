"""The rows beside a distilled set: random real pairs, and the experts on the full data."""

from functools import partial
from pathlib import Path

from tqdm import tqdm

from distill_utils.evaluation.protocols import choose_epochs, summarise_students
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.runs.reading import read_json


def random_baselines(draws, learned_lrs, loss_type, evaluate, run_all):
    """The rows `random` (InfoNCE, the literature's baseline) and `random_same_loss`: a student on each of
    several draws of real pairs.

    Each at the better learning rates of .1 and the learned ones, chosen on val as everything is.
    evaluate(synthetic, number, loss_type, lrs) -> result of one student; run_all([functions]) -> their
    results. Rates at which a student diverges are passed over in words.
    """
    best = {}
    for loss in dict.fromkeys(("InfoNCE", loss_type)):
        results = []
        for lrs in ((0.1, 0.1), learned_lrs):
            try:
                runs = run_all(
                    [partial(evaluate, pairs, number, loss, lrs) for number, pairs in enumerate(draws)]
                )
            except Diverged as error:
                tqdm.write(f"random pairs, {loss}, learning rates {lrs}: {error}")
                continue
            students = [student for run in runs for student in run["students"]]
            results.append(runs[0] | summarise_students(students))
        if not results:
            raise Diverged(
                f"Students on random pairs diverged with {loss} at both learning rates tried, .1 and {learned_lrs}."
            )
        best[loss] = max(results, key=lambda result: result["val_r_mean"]["mean"])
    return {"random": best["InfoNCE"], "random_same_loss": best[loss_type]}


def experts_row(folder):
    """The row `full`: the experts of a buffer folder, from the results that buffer.py left beside each."""
    files = sorted(Path(folder).glob("results_*.json"))
    if not files:
        raise UserError(
            f"{folder} holds no results_*.json of experts: train them with buffer.py, or leave --baselines off."
        )
    return summarise_students([choose_epochs(read_json(file)["curve"]) for file in files])

"""Whole distillations under several seeds, one after another, and their mean."""

from distill_utils.evaluation.protocols import selected_evaluation, summarise_runs
from distill_utils.evaluation.tables import format_table
from distill_utils.runs.processes import is_first
from distill_utils.runs.reading import read_json


def distill_seeds(main, argv, name, seeds):
    """main(argv) -> folder for each of the seeds; prints their selected sets' recall and its mean, and
    returns the folders.
    """
    folders = [
        main([*argv, "--num_seeds", "1", "--seed", str(seed), "--name", f"{name}_seed{seed}"])
        for seed in seeds
    ]
    rows = {}
    for seed, folder in zip(seeds, folders):
        rows[f"seed {seed}"] = selected_evaluation(read_json(folder / "results.json"))
    if is_first():
        print(
            f"test recall in %, outer step and epoch chosen on val; the last row: {len(rows)} distillations"
        )
        print(format_table(rows | {"all": summarise_runs(list(rows.values()))}))
    return folders

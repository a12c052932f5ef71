"""Fresh students on a synthetic set, and their recall: `python -m distill_utils.evaluate --dataset toy --ckpt_path RUN_OR_FILE ...`."""

import re
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from scipy import stats
from tqdm import tqdm

from distill_utils import config
from distill_utils.coreset import real_set, select
from distill_utils.errors import Diverged, UserError
from distill_utils.files import read_json
from distill_utils.flags import experts_folder, model_maker, open_task
from distill_utils.losses import LOSSES
from distill_utils.parallel import ALONE
from distill_utils.retrieval import recall_by_group, recall_from_ranks, retrieval_ranks
from distill_utils.run import Run, derive_seed, generator, run_program
from distill_utils.synthetic import SyntheticSet
from distill_utils.task import encoder_input
from distill_utils.training import train_student

METRICS = ("img_r1", "img_r5", "img_r10", "txt_r1", "txt_r5", "txt_r10", "r_mean")
PROTOCOLS = ("val", "last", "best")
_MEASUREMENTS = 10  # per student: recall after every tenth of its training


@torch.no_grad()
def gallery_recall(model, gallery, device, batch_size=256, breakdown=False):
    """retrieval_recall of a model in eval mode on a Gallery; with "breakdown", recall_by_group, when asked for."""
    model.eval()
    images = torch.cat([model.encode_images(encoder_input(batch, device)) for batch in gallery.images.split(batch_size)])
    texts = torch.cat([model.encode_texts(batch.to(device)) for batch in gallery.texts.split(8192)])
    ranks = retrieval_ranks(images, texts, gallery.txt2img)
    groups = {"breakdown": recall_by_group(gallery.captions, gallery.txt2img, *ranks)} if breakdown else {}
    return recall_from_ranks(*ranks) | groups


def choose_epochs(curve):
    """The recall that each protocol reports from a student's curve of {"epoch", "val", "test"}.

    val: the test recall at the epoch that is best on val (the earliest of equals). last: at the last epoch. best: the best test
    recall of any epoch, the published protocol, which selects on the test split.
    """
    chosen = {
        "val": max(curve, key=lambda point: point["val"]["r_mean"]),
        "last": curve[-1],
        "best": max(curve, key=lambda point: point["test"]["r_mean"]),
    }
    return {protocol: point["test"] for protocol, point in chosen.items()} | {"val_r_mean": chosen["val"]["val"]["r_mean"]}


def summarise(values):
    """{"mean", "std", "n"} of numbers; the sample standard deviation, 0 for a single one."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "n": len(values)}


def summarise_students(students):
    """The headline (protocol val) at top level, every protocol under its name, and the students themselves."""
    protocols = {protocol: {key: summarise([student[protocol][key] for student in students]) for key in METRICS} for protocol in PROTOCOLS}
    summary = protocols["val"] | {"protocols": protocols, "val_r_mean": summarise([student["val_r_mean"] for student in students])}
    if "breakdown" in students[0]["val"]:
        groups = [student["val"]["breakdown"] for student in students]
        summary["breakdown"] = {
            group: {key: value if key == "queries" else summarise([of_student[group][key] for of_student in groups]) for key, value in cells.items()}
            for group, cells in groups[0].items()
        }
    return summary | {"students": students}


def summarise_runs(results):
    """Mean and deviation over whole distillations: of each, the mean over its students is one value."""
    protocols = {
        protocol: {key: summarise([result["protocols"][protocol][key]["mean"] for result in results]) for key in METRICS} for protocol in PROTOCOLS
    }
    return protocols["val"] | {"protocols": protocols}


def evaluate_synthetic_set(
    synthetic,
    task,
    make_model,
    *,
    num_eval=5,
    epochs=100,
    batch_size=128,
    loss_type="WBCE",
    temperature=0.07,
    lrs=None,
    seed=0,
    device="cpu",
    precision="fp32",
    progress=True,
    breakdown=False,
    world=ALONE,
):
    """Recall of `num_eval` fresh students trained on the set, each under its own seed; see `summarise_students`.

    make_model() -> TwoTower, called once a student under that student's seed. lrs: (image, text) learning rates; the set's own if
    None. breakdown: recall by group of queries too. world: the processes that divide the students. Raises Diverged when a student does.
    """
    synthetic = synthetic.to(device)
    lr_img, lr_txt = lrs or (synthetic.lr_img.item(), synthetic.lr_txt.item())
    measured = {max(1, round(epochs * k / _MEASUREMENTS)) for k in range(1, _MEASUREMENTS + 1)}
    bar = tqdm(total=num_eval * epochs, desc="students", disable=not (progress and world.first), leave=False)

    def student(number):
        student_seed = derive_seed(seed, "student", number)
        with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
            torch.manual_seed(student_seed)
            model = make_model().to(device)
            training = train_student(
                model,
                synthetic,
                epochs=epochs,
                batch_size=batch_size,
                loss_fn=LOSSES[loss_type],
                temperature=temperature,
                lr_img=lr_img,
                lr_txt=lr_txt,
                generator=generator(student_seed),
                precision=precision,
            )
            curve = []
            for epoch, loss in training:
                bar.update()
                if epoch in measured:
                    recalls = {split: gallery_recall(model, gallery, device, breakdown=breakdown) for split, gallery in task.galleries.items()}
                    curve.append({"epoch": epoch, "train_loss": loss} | recalls)
        return choose_epochs(curve) | {"seed": student_seed, "curve": curve}

    with bar:
        students = world.map([partial(student, number) for number in range(num_eval)], device)
    made_with = {"pairs": len(synthetic), "storage": synthetic.storage(), "loss": loss_type, "lr_img": lr_img, "lr_txt": lr_txt, "epochs": epochs}
    return summarise_students(students) | made_with


def confidence(cell):
    """Half the width of the 95 % confidence interval of a mean, from Student's t; NaN for a single value."""
    n = cell["n"]
    return float(stats.t.ppf(0.975, n - 1)) * cell["std"] / n**0.5 if n > 1 else float("nan")


def _text(cell):
    return f"{cell['mean']:.1f} ± {cell['std']:.1f}"


def format_table(rows):
    """Aligned text of {name: result}: mean +- std of every metric by the val protocol, its r_mean's 95 % interval, r_mean by the
    other protocols, the number of students, and the storage in numbers of plain pairs where it is known."""
    header = ["", *METRICS, "95 %", "last", "best", "n", "plain pairs"]
    lines = [
        [name, "diverged", *[""] * (len(header) - 2)]
        if "diverged" in result
        else [
            name,
            *(_text(result[key]) for key in METRICS),
            f"± {confidence(result['r_mean']):.1f}",
            *(_text(result["protocols"][protocol]["r_mean"]) for protocol in ("last", "best")),
            str(result["r_mean"]["n"]),
            f"{result['storage']:.2f}" if "storage" in result else "",
        ]
        for name, result in rows.items()
    ]
    return aligned(header, lines)


def format_breakdown(groups):
    """Aligned text of a result's "breakdown"."""
    keys = [[key for key in cells if key != "queries"] for cells in groups.values()]
    lines = [[group, str(cells["queries"]), *(_text(cells[key]) for key in own)] for (group, cells), own in zip(groups.items(), keys)]
    return aligned(["queries", "number", "R@1", "R@5", "R@10"], lines)


def selected_evaluation(results):
    """Of a run's results.json the evaluation of the outer step chosen on val; None where there is none."""
    return next((result for result in results.get("evaluations", []) if result["step"] == results.get("selected_step")), None)


def aligned(header, rows):
    """Aligned text; the first column to the left."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))) for line in lines)


def find_checkpoint(path):
    """The file itself, or of a run's folder the set that was best on val (the last one where nothing was evaluated)."""
    path = Path(path)
    if not path.is_dir():
        return path
    steps = sorted(int(match[1]) for file in path.iterdir() if (match := re.fullmatch(r"distilled_(\d+)\.pt", file.name)))
    if not steps:
        raise UserError(f"--ckpt_path {path} holds no distilled_*.pt.")
    step = read_json(path / "results.json", {}).get("selected_step", steps[-1])
    return path / f"distilled_{step}.pt"


def require_fits(synthetic, task, path):
    """UserError unless the set's texts are embeddings of the task's text encoder and its images have the task's size."""
    if synthetic.texts.shape[1] != task.text_dim:
        raise UserError(
            f"{path} holds text embeddings of width {synthetic.texts.shape[1]}, but --text_encoder {task.text_encoder} "
            f"gives {task.text_dim}: evaluate with the text encoder of the set ({synthetic.meta.get('text_encoder', 'unknown')})."
        )
    made_with = synthetic.meta.get("text_fingerprint", task.text_fingerprint)
    if made_with != task.text_fingerprint:
        raise UserError(
            f"{path} was made with other weights of the text encoder ({synthetic.meta['text_encoder']}) than "
            f"--text_encoder {task.text_encoder} has here."
        )
    if synthetic.images.shape[-1] != task.image_size:
        raise UserError(f"{path} holds images of {synthetic.images.shape[-1]} pixels, but --image_size is {task.image_size}.")


def random_baselines(draws, learned_lrs, loss_type, evaluate, run_all):
    """The rows `random` (InfoNCE, the literature's baseline) and `random_same_loss`: a student on each of several draws of real pairs.

    Each at the better learning rates of .1 and the learned ones, chosen on val as everything is.
    evaluate(synthetic, number, loss_type, lrs) -> result of one student; run_all([functions]) -> their results. Rates at which a
    student diverges are passed over in words.
    """
    best = {}
    for loss in dict.fromkeys(("InfoNCE", loss_type)):
        results = []
        for lrs in ((0.1, 0.1), learned_lrs):
            try:
                runs = run_all([partial(evaluate, pairs, number, loss, lrs) for number, pairs in enumerate(draws)])
            except Diverged as error:
                tqdm.write(f"random pairs, {loss}, learning rates {lrs}: {error}")
                continue
            students = [student for run in runs for student in run["students"]]
            results.append(runs[0] | summarise_students(students))
        if not results:
            raise Diverged(f"Students on random pairs diverged with {loss} at both learning rates tried, .1 and {learned_lrs}.")
        best[loss] = max(results, key=lambda result: result["val_r_mean"]["mean"])
    return {"random": best["InfoNCE"], "random_same_loss": best[loss_type]}


def experts_row(folder):
    """The row `full`: the experts of a buffer folder, from the results that buffer.py left beside each."""
    files = sorted(Path(folder).glob("results_*.json"))
    if not files:
        raise UserError(f"{folder} holds no results_*.json of experts: train them with buffer.py, or leave --baselines off.")
    return summarise_students([choose_epochs(read_json(file)["curve"]) for file in files])


def main(argv=None):
    args = config.parse(config.evaluate_parser(__doc__), argv)
    path = find_checkpoint(args.ckpt_path)
    synthetic = SyntheticSet.load(path)
    run = Run(args, "evaluate", default_name=path.parent.name, directory=path.parent, divided=True)
    task = open_task(args, run.device)
    require_fits(synthetic, task, path)
    loss_type = args.loss_type or synthetic.meta.get("loss", "WBCE")

    evaluate = partial(
        evaluate_synthetic_set,
        task=task,
        make_model=model_maker(args, task, run.device),
        epochs=args.epoch_eval_train,
        batch_size=args.batch_eval,
        temperature=args.temperature,
        device=run.device,
        precision=args.precision,
    )

    def evaluate_draw(pairs, number, loss, lrs):
        return evaluate(pairs, num_eval=1, loss_type=loss, lrs=lrs, seed=derive_seed(args.seed, "random", number))

    run_all = partial(run.world.map, device=run.device)

    rows = {}
    if args.baselines:
        numbers = generator(args.seed, "coreset")
        draws = [real_set(task, select("random", task, len(synthetic), numbers), {}) for _ in range(args.num_eval)]
        rows |= random_baselines(draws, (synthetic.lr_img.item(), synthetic.lr_txt.item()), loss_type, evaluate_draw, run_all)
    seed = derive_seed(args.seed, "evaluate")
    rows["distilled"] = evaluate(synthetic, num_eval=args.num_eval, loss_type=loss_type, seed=seed, breakdown=args.breakdown, world=run.world)
    rows["distilled"] |= {"file": path.name}
    if args.baselines:
        rows["full"] = experts_row(experts_folder(args))
    run.update_results(rows)
    run.log(synthetic.meta.get("step", 0), {f"Evaluate/{row}/{key}": result[key]["mean"] for row, result in rows.items() for key in METRICS})
    run.finish()
    if run.world.first:
        print(f"{path}: {len(synthetic)} pairs, test recall in %, epoch chosen on val")
        print(format_table(rows))
        if args.breakdown:
            print("\ndistilled, by kind of query (text to image, image to text)")
            print(format_breakdown(rows["distilled"]["breakdown"]))
    return rows


if __name__ == "__main__":
    sys.exit(run_program(main))

"""What is told of experts in training: lines of the log, curves, a sentence an epoch."""

from tqdm import tqdm

from distill_utils.experts.progress import Progress
from distill_utils.runs.reading import read_json


def report_epochs(run, n, num_experts, epochs):
    """on_epoch for expert n: returns a line of the log, and says it in words."""

    def on_epoch(epoch, values):
        line = run.log_line(n * epochs + epoch, {"expert": n, "epoch": epoch} | values)
        run.log_wandb(epoch, values)
        recall = f", test r_mean {values['Results/r_mean']:.1f}" if "Results/r_mean" in values else ""
        tqdm.write(
            f"expert {n + 1}/{num_experts}, epoch {epoch}/{epochs}: loss "
            f"{values['Loss/train_loss']:.3f}{recall}"
        )
        return line

    return on_epoch


def write_log(run, folder, num_experts):
    """log.jsonl: what is known of all experts, whoever trains them."""

    def lines():
        for n in range(num_experts):
            result = read_json(folder / f"results_{n}.json", {}) or Progress(folder, n, 0).history() or {}
            known = result.get("lines")
            yield from known if isinstance(known, list) else ()

    run.rewrite_log(lines)

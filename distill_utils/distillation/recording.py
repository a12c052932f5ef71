"""What an outer step leaves behind: a line of the log, at its time an evaluated set, panels and a state to go
on from.
"""

from contextlib import contextmanager, suppress

from tqdm import tqdm

from distill_utils.evaluation.protocols import METRICS
from distill_utils.pages.nearest import nearest_captions
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.runs.signals import undisturbed
from distill_utils.runs.writing import write_json
from distill_utils.synthetic.set import SyntheticSet

_PANELS = 50  # pairs shown in wandb


class Recorder:
    """Records the steps of an OuterLoop in a run's folder; evaluations: {step: result} of the sets evaluated
    so far.

    evaluate(synthetic) -> result. Sets are evaluated and saved at the first step, every `eval_it` and the
    last; the state every `save_it`, at evaluations, and whatever ends the run.
    """

    def __init__(self, run, loop, task, evaluate, evaluations, *, last_step, eval_it, save_it):
        self.run, self.loop, self.task, self.evaluate, self.evaluations = (
            run,
            loop,
            task,
            evaluate,
            evaluations,
        )
        self.last_step, self.eval_it, self.save_it = last_step, eval_it, save_it

    @contextmanager
    def keeping(self):
        """A block after which the state is saved if anything ends it early: a signal, a full disk, a process
        that died.
        """
        self.bar = tqdm(
            total=self.last_step, initial=self.loop.step, desc="outer steps", disable=not self.run.world.first
        )
        try:
            with self.bar:
                yield
        except BaseException:
            with undisturbed(), suppress(UserError):  # such as a full disk, which may be the very reason
                self._save()
            raise

    def record(self):
        """Log the step that the loop has just done; evaluate, show and save it when it is time."""
        loop = self.loop
        if loop.unlogged is None:  # a run that goes on, where this was done before it was stopped
            return
        step, values = loop.step, loop.unlogged
        evaluating = step % self.eval_it == 0 or step in (loop.first_step, self.last_step)
        if evaluating:
            values = values | self._evaluate(step)
        self._show(step, values)
        with undisturbed():
            self.run.log(step, values)
            if evaluating:
                self.run.log_panels(step, self._panels)
            loop.recorded()
            if evaluating or step % self.save_it == 0:
                self._save()

    def _save(self):
        loop = self.loop
        state = loop.state() | {"evaluations": self.evaluations}
        self.run.save_state(state, logged=loop.step - (loop.unlogged is not None))

    def _evaluate(self, step):
        """Write distilled_{step}.pt and its evaluation; the values to log.

        A set whose students diverge has no result, and is never selected.
        """
        synthetic, evaluations = self.loop.synthetic, self.evaluations
        synthetic.meta["step"] = step
        if self.run.world.first:
            synthetic.save(self.run.directory / f"distilled_{step}.pt")
        try:
            result = self.evaluate(synthetic)
        except Diverged as error:
            if not evaluations:
                raise
            tqdm.write(f"step {step}: the students diverged, so that this set has no result ({error})")
            return {"Guard/students_diverged": 1}
        evaluations[step] = result
        listed = [{"step": s} | r for s, r in sorted(evaluations.items())]
        self.run.update_results({"selected_step": selected_step(evaluations), "evaluations": listed})
        if self.run.world.first:
            test = f"{result['r_mean']['mean']:.1f} ± {result['r_mean']['std']:.1f} on test"
            rates = f"learned lrs {synthetic.lr_img.item():.3f}, {synthetic.lr_txt.item():.3f}"
            tqdm.write(f"step {step}: r_mean {result['val_r_mean']['mean']:.1f} on val, {test}; {rates}")
        return evaluation_log(result)

    def _show(self, step, values):
        evaluations = self.evaluations
        best = evaluations[selected_step(evaluations)]["r_mean"]["mean"] if evaluations else float("nan")
        loss, memory = values.get("Loss/grand", float("nan")), values.get("memory_mb", 0) / 1024
        self.bar.set_postfix_str(f"loss {loss:.3f}, best r_mean {best:.1f}, {memory:.1f} GiB")
        self.bar.update(step - self.bar.n)

    def _panels(self):
        """Of the first pairs: pixels [n, 3, H, W] in [0, 1], and of the learned texts the nearest real
        captions.
        """
        synthetic, train = self.loop.synthetic, self.task.train
        nearest = nearest_captions(
            synthetic.texts.detach()[:_PANELS], self.task.train_texts, train.captions, k=1
        )
        return synthetic.pixels()[:_PANELS], [captions[0]["caption"] for captions in nearest]

    def say_what_came_out(self):
        """Write nearest.json of the set that was best on val, and say where that is."""
        if not self.run.world.first:
            return
        directory, selected = self.run.directory, selected_step(self.evaluations)
        best = SyntheticSet.load(directory / f"distilled_{selected}.pt")
        captions = nearest_captions(best.texts.detach(), self.task.train_texts, self.task.train.captions)
        write_json(directory / "nearest.json", {"step": selected, "captions": captions})
        print(f"{len(best)} pairs in {directory}; best on val: distilled_{selected}.pt")


def selected_step(evaluations):
    """The earliest of the outer steps that are best on val."""
    return max(sorted(evaluations), key=lambda step: evaluations[step]["val_r_mean"]["mean"])


def evaluation_log(result):
    """The reference's keys: Mean/ and Std/ of the headline protocol; the others under their own names."""
    values = {
        f"{name}/{key}": result[key][stat]
        for key in METRICS
        for name, stat in (("Mean", "mean"), ("Std", "std"))
    }
    others = {
        f"{protocol.title()}/r_mean": result["protocols"][protocol]["r_mean"]["mean"]
        for protocol in ("last", "best")
    }
    last = result["students"][-1]["curve"][-1]
    return (
        values | others | {"Val/r_mean": result["val_r_mean"]["mean"], "Loss/train_loss": last["train_loss"]}
    )

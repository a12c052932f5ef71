"""What an outer step leaves behind: a line of the log, at its time an evaluated set, panels and a state to go
on from.
"""

from contextlib import contextmanager, suppress

from tqdm import tqdm

from distill_utils.evaluation.protocols import METRICS, is_tested
from distill_utils.evaluation.tables import cell_text
from distill_utils.pages.nearest import nearest_captions
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.runs.signals import undisturbed
from distill_utils.runs.writing import write_json
from distill_utils.synthetic.set import SyntheticSet

_PANELS = 50  # pairs shown in wandb


class Recorder:
    """Records the steps of an OuterLoop in a run's folder; evaluations: {step: result} so far.

    Sets are evaluated by look(synthetic) -> result and saved at the first step, every `eval_it` and the last;
    at the end the set that is best on val is tested by test(synthetic) -> result, which is then `tested`. The
    state is saved every `save_it`, at evaluations, and whatever ends the run.
    """

    def __init__(self, run, loop, task, look, test, *, evaluations, tested, last_step, eval_it, save_it):
        self.run, self.loop, self.task = run, loop, task
        self.evaluations, self.tested = evaluations, tested
        self.look, self.test = look, test
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
        state = loop.state() | {"evaluations": self.evaluations, "tested": self.tested}
        self.run.save_state(state, logged=loop.step - (loop.unlogged is not None))

    def _evaluate(self, step):
        """Write distilled_{step}.pt and its evaluation; the values to log.

        A set whose students diverge has no result, and is never selected.
        """
        synthetic = self.loop.result
        synthetic.meta["step"] = step
        if self.run.world.first:
            synthetic.save(self._file(step))
        try:
            result = self.look(synthetic)
        except Diverged as error:
            if not self.evaluations:
                raise
            tqdm.write(f"step {step}: the students diverged, so that this set has no result ({error})")
            return {"Guard/students_diverged": 1}
        self._keep(step, result)
        if self.run.world.first:
            on_val, rates = result["on_val"]["r_mean"], (synthetic.lr_img.item(), synthetic.lr_txt.item())
            tested = f", {cell_text(result['r_mean'])} on test" if is_tested(result) else ""
            told = "learned lrs {:.3f}, {:.3f}".format(*rates)
            tqdm.write(f"step {step}: r_mean {cell_text(on_val)} on val{tested}; {told}")
        return evaluation_log(result)

    def _file(self, step):
        return self.run.directory / f"distilled_{step}.pt"

    def _keep(self, step, result):
        self.evaluations[step] = result | {"digest": self.loop.result.digest()}
        listed = [{"step": s} | r for s, r in sorted(self.evaluations.items())]
        self.run.update_results({"selected_step": selected_step(self.evaluations), "evaluations": listed})

    def _show(self, step, values):
        evaluations = self.evaluations
        best = evaluations[selected_step(evaluations)]["val_r_mean"]["mean"] if evaluations else float("nan")
        loss, memory = values.get("Loss/grand", float("nan")), values.get("memory_mb", 0) / 1024
        self.bar.set_postfix_str(f"loss {loss:.3f}, best on val {best:.1f}, {memory:.1f} GiB")
        self.bar.update(step - self.bar.n)

    def _panels(self):
        """Of the first pairs: pixels [n, 3, H, W] in [0, 1], and of the learned texts the nearest real
        captions.
        """
        synthetic, train = self.loop.result, self.task.train
        nearest = nearest_captions(
            synthetic.texts.detach()[:_PANELS], self.task.train_texts, train.captions, k=1
        )
        return synthetic.pixels()[:_PANELS], [captions[0]["caption"] for captions in nearest]

    def test_selected(self):
        """Test the set that is best on val with fresh students, unless it was: `selected` in results.json.

        The result; None, in words, where one of the students diverged.
        """
        step = selected_step(self.evaluations)
        result = next((r for r in (self.evaluations[step], self.tested) if _is_test_of(r, step)), None)
        if not result:
            chosen = SyntheticSet.load(self._file(step))
            try:
                result = {"step": step, "digest": chosen.digest()} | self.test(chosen)
            except Diverged as error:
                tqdm.write(f"step {step} is best on val, but has no test: a student diverged ({error})")
                return None
            with undisturbed():
                self.tested = result
                self.run.update_results({"selected": result})
                self._save()
        self.run.summarise({f"Test/{metric}": result[metric]["mean"] for metric in METRICS})
        return result

    def say_what_came_out(self):
        """Write nearest.json of the set that was best on val, and say where that is and how good."""
        tested = self.test_selected()
        if not self.run.world.first:
            return
        directory, selected = self.run.directory, selected_step(self.evaluations)
        best = SyntheticSet.load(self._file(selected))
        captions = nearest_captions(best.texts.detach(), self.task.train_texts, self.task.train.captions)
        write_json(directory / "nearest.json", {"step": selected, "captions": captions})
        on_test = f", r_mean {cell_text(tested['r_mean'])} on test" if tested else ""
        print(f"{len(best)} pairs in {directory}; best on val: {self._file(selected).name}{on_test}")


def _is_test_of(result, step):
    """Whether a result, None or of val alone perhaps, is the test of a step."""
    return bool(result) and is_tested(result) and result.get("step", step) == step


def is_finished(state, last_step):
    """Whether a saved state is that of a run that has nothing left to do up to `last_step`."""
    if not state or state["step"] < last_step or state.get("unlogged") is not None:
        return False
    evaluations = state.get("evaluations")
    if not evaluations:
        return False
    selected = selected_step(evaluations)
    return any(_is_test_of(result, selected) for result in (evaluations[selected], state.get("tested")))


def selected_step(evaluations):
    """The earliest of the outer steps that are best on val."""
    return max(sorted(evaluations), key=lambda step: evaluations[step]["val_r_mean"]["mean"])


def evaluation_log(result):
    """The reference's keys, Mean/ and Std/: of the recall on val, or, where test was measured, of that at the
    epoch chosen on val, with the other protocols under their own names.
    """
    shown = result if is_tested(result) else result["on_val"]
    values = {
        f"{name}/{key}": shown[key][stat]
        for key in METRICS
        for name, stat in (("Mean", "mean"), ("Std", "std"))
    }
    if is_tested(result):
        last, best = (result["protocols"][protocol]["r_mean"]["mean"] for protocol in ("last", "best"))
        values |= {"Last/r_mean": last, "Best/r_mean": best}
    train_loss = result["students"][-1]["curve"][-1]["train_loss"]
    return values | {"Val/r_mean": result["val_r_mean"]["mean"], "Loss/train_loss": train_loss}

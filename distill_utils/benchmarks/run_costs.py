"""What a whole distillation costs, as arithmetic on plain numbers: outer steps, students, recall."""

from math import ceil
from typing import NamedTuple

REFERENCE_STUDENTS = 5  # of every evaluation in the published code
REFERENCE_MEASUREMENTS = 11  # of each of them, on test
LAST_MEASUREMENTS = 10  # of a student of the selected set, on val and on test


class PerPair(NamedTuple):
    """FLOPs of a student: forward of an image and of a text; forward and backward of a pair; an inner step's
    share of an outer step, for a pair of its minibatch, by the reference's two passes and by ours; and the
    width of its features.
    """

    image: float
    text: float
    training: float
    reference: float
    ours: float
    width: int


class Recipe(NamedTuple):
    """The flags that a run's cost follows from; val and test: (images, texts)."""

    pairs: int
    batch: int
    syn_steps: int
    outer_steps: int
    eval_it: int
    epochs: int
    val: tuple
    test: tuple

    @property
    def evaluations(self):
        """At the start, after every eval_it outer steps and after the last."""
        return 1 + ceil(self.outer_steps / self.eval_it)


def recall_flops(cost, images, texts):
    """One measurement: both towers over a gallery, and the scores of all its pairs."""
    return images * cost.image + texts * cost.text + 2 * images * texts * cost.width


def run_flops(cost, recipe, inner_pair, evaluated):
    """{part: FLOPs} of a run whose inner steps cost inner_pair a pair.

    evaluated: (students, epochs, measurements of each on val, on test) of each kind of evaluation.
    """
    outer = recipe.outer_steps * recipe.syn_steps * recipe.batch * inner_pair
    training = sum(students * epochs * recipe.pairs * cost.training for students, epochs, _, _ in evaluated)
    val = sum(students * on_val for students, _, on_val, _ in evaluated)
    test = sum(students * on_test for students, _, _, on_test in evaluated)
    recall = [val * recall_flops(cost, *recipe.val), test * recall_flops(cost, *recipe.test)]
    return {"outer steps": outer, "students": training, "val": recall[0], "test": recall[1]}


def reference_run(cost, recipe, inner_pair):
    """A run evaluated as published: all students at every evaluation, an epoch more than asked, on test
    alone.
    """
    students = recipe.evaluations * REFERENCE_STUDENTS
    return run_flops(cost, recipe, inner_pair, [(students, recipe.epochs + 1, 0, REFERENCE_MEASUREMENTS)])


def our_run(cost, recipe, *, students, measurements, last_students):
    """A run that looks at val alone, and trains fresh students for the selected set at the end."""
    looks = (recipe.evaluations * students, recipe.epochs, measurements, 0)
    last = (last_students, recipe.epochs, LAST_MEASUREMENTS, LAST_MEASUREMENTS)
    return run_flops(cost, recipe, cost.ours, [looks, last])

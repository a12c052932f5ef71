"""The cost of a whole run, against arithmetic by hand and convolutions counted by hand."""

import json

import pytest
import torch

from distill_utils import benchmark
from distill_utils.benchmarks.run import flops_of
from distill_utils.benchmarks.run_costs import PerPair, Recipe, our_run, recall_flops, reference_run

COST = PerPair(image=10, text=2, training=30, reference=100, ours=50, width=4)
RECIPE = Recipe(pairs=7, batch=3, syn_steps=2, outer_steps=10, eval_it=4, epochs=6, val=(5, 8), test=(9, 20))


def test_a_measurement_is_both_towers_and_the_scores():
    assert recall_flops(COST, 5, 8) == 5 * 10 + 8 * 2 + 2 * 5 * 8 * 4


def test_the_references_run():
    assert RECIPE.evaluations == 4  # steps 0, 4, 8 and 10
    assert reference_run(COST, RECIPE, COST.reference) == {
        "outer steps": 10 * 2 * 3 * 100,
        "students": 4 * 5 * 7 * 7 * 30,  # evaluations, students, epochs and one more, pairs
        "val": 0,
        "test": 4 * 5 * 11 * (90 + 40 + 1440),
    }


def test_our_run():
    assert our_run(COST, RECIPE, students=2, measurements=3, last_students=5) == {
        "outer steps": 10 * 2 * 3 * 50,
        "students": (4 * 2 + 5) * 6 * 7 * 30,
        "val": (4 * 2 * 3 + 5 * 10) * (50 + 16 + 320),
        "test": 5 * 10 * (90 + 40 + 1440),
    }


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_costs_thrice_its_forward_with_groups_too(groups):
    layer = torch.nn.Conv2d(8, 12, 3, groups=groups, bias=False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    forward = 2 * (2 * 4 * 4) * 12 * (8 // groups) * 9
    assert flops_of(lambda: layer(x)) == forward
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * forward


def test_the_program(capsys):
    flags = "run --image_encoder test_nfnet --image_size 32 --num_queries 99 --mini_batch_size 20"
    flags += " --device cpu"
    benchmark.main(flags.split())
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    cost = printed["per_pair"]
    # a plain step is at most three forwards; ours lies between one plain step and the reference's two passes
    assert cost["image"] + cost["text"] < cost["training"] <= 3 * (cost["image"] + cost["text"])
    assert cost["training"] < cost["ours"] < cost["reference"]
    assert printed["totals"]["ours"] < printed["totals"]["the reference"]

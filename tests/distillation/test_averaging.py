"""The moving average of a set: its closed form, what is saved, and going on."""

import pytest
import torch
from builders import tiny_set
from commands import distill

from distill_utils.distillation.averaging import Average
from distill_utils.runs.tensors import load_tensors
from distill_utils.synthetic.set import SyntheticSet


def test_is_the_closed_form_for_images_texts_and_similarity_and_has_the_rates_of_the_set():
    synthetic, d, steps = tiny_set(), 0.8, 5
    average, seen = Average(synthetic, d), [[p.detach().clone() for p in synthetic.parameters()]]
    for _ in range(steps):
        with torch.no_grad():
            for parameter in synthetic.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        seen.append([p.detach().clone() for p in synthetic.parameters()])
    for n, (name, mean) in enumerate(average.average.named_parameters()):
        expected = d**steps * seen[0][n]
        for k in range(1, steps + 1):
            expected = expected + (1 - d) * d ** (steps - k) * seen[k][n]
        expected = seen[-1][n] if name.startswith("lr_") else expected
        assert torch.allclose(mean, expected, rtol=1e-12), name


def test_one_step_with_no_memory_is_the_set():
    synthetic = tiny_set()
    average = Average(synthetic, 0.0)
    with torch.no_grad():
        synthetic.images.add_(1)
    average.update()
    assert torch.allclose(average.average.images, synthetic.images)


def test_a_run_saves_the_average_and_goes_on_from_the_set(here):
    few = ["--num_eval", "1", "--Iteration", "4", "--save_it", "2", "--eval_it", "2"]
    plain, averaged = distill(here, "plain", *few), distill(here, "averaged", *few, "--ema", "0.5")
    sets = [SyntheticSet.load(plain / f"distilled_{step}.pt") for step in (0, 2, 4)]
    found = SyntheticSet.load(averaged / "distilled_4.pt")
    # z_1 and z_3 are not on record, but the average lies between the sets and is none of them
    assert not torch.equal(found.images, sets[2].images) and found.lr_img == sets[2].lr_img
    states = [load_tensors(folder / "state.pt") for folder in (plain, averaged)]
    assert torch.equal(*(state["set"]["image"] for state in states))  # what is learned is the same
    assert torch.equal(found.images, states[1]["average"][0])
    assert found.meta["step"] == 4


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_ends_with_the_same_average(here, stop):
    few = ["--num_eval", "1", "--save_it", "1", "--eval_it", "4", "--ema", "0.5"]
    whole = distill(here, "whole_average", *few, "--Iteration", "4")
    distill(here, "stopped_average", *few, "--Iteration", str(stop))
    again = distill(here, "stopped_average", *few, "--Iteration", "4", "--resume", "auto")
    sets = [SyntheticSet.load(folder / "distilled_4.pt") for folder in (whole, again)]
    assert sets[0].digest() == sets[1].digest()

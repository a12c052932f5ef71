"""CovMatch: the covariance on matrices one checks by hand, the model that trains along, and whole runs."""

import pytest
import torch
from builders import TinyTask, tiny_model, tiny_set
from commands import distill, read_log

from distill_utils.distribution.covmatch import CovarianceMatching, cross_covariance
from distill_utils.runs.processes import ALONE

COV = "--objective covmatch --sim_type identity --loss_type InfoNCE --lr_img 0.1 --lr_txt 0.1".split()


def test_the_cross_covariance_by_hand():
    images = torch.tensor([[0.0, 2.0], [2.0, 4.0]])
    texts = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 1.0]])
    # centred: images -1 -1 / 1 1, texts -1 0 2 / 1 0 -2
    assert torch.equal(cross_covariance(images, texts), torch.tensor([[1.0, 0.0, -2.0], [1.0, 0.0, -2.0]]))
    assert torch.equal(cross_covariance(images + 7, texts - 3), cross_covariance(images, texts))


def matching(**how):
    task = TinyTask(pairs=20)

    def real_batch(size, generator):
        pairs = torch.randperm(20, generator=generator)[:size]
        return task._images[pairs], task._texts[pairs]

    return CovarianceMatching(lambda: tiny_model(seed=None), real_batch, world=ALONE, **how)


def test_a_set_that_is_the_real_batch_has_no_loss_and_rho_stretches_the_covariance():
    synthetic = tiny_set(pairs=5)
    objective = matching(batch_size=5)
    objective.real_batch = lambda size, generator: (synthetic.images.detach(), synthetic.texts.detach())
    values = objective(synthetic, 1, torch.Generator().manual_seed(0)).values
    assert values["Loss/covariance"] == pytest.approx(0, abs=1e-20)
    assert values["Loss/means"] == pytest.approx(0, abs=1e-20)
    objective.rho = 2.0
    values = objective(synthetic, 1, torch.Generator().manual_seed(0)).values
    model = objective._model.eval()
    assert values["Loss/covariance"] > 0 and values["Loss/means"] == pytest.approx(0, abs=1e-20)
    assert model is objective._model


def test_the_loss_and_gradient_written_out():
    synthetic, objective = tiny_set(pairs=6), matching(batch_size=4, rho=2.0, weight=0.3)
    outcome = objective(synthetic, 1, torch.Generator().manual_seed(4))
    found = {name: parameter.grad.clone() for name, parameter in synthetic.named_parameters()}
    numbers = torch.Generator().manual_seed(4)
    seed = int(torch.randint(1 << 62, (), generator=numbers))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny_model(seed=None).eval()
    images, texts = objective.real_batch(4, numbers)
    ids = torch.randperm(6, generator=numbers)[:4]
    x, y = synthetic.images[ids], synthetic.texts[ids]
    sides = []
    for pictures, words in ((images, texts), (x, y)):
        v, t = model.image_encoder(pictures), model.text_projection(words)
        centred = [values - values.mean(0) for values in (v, words)]
        covariance = sum(torch.outer(a, b) for a, b in zip(*centred)) / 4
        sides.append((covariance, v.mean(0), t.mean(0)))
    real, made = sides
    loss = ((2.0 * real[0] - made[0]) ** 2).sum()
    loss = loss + 0.3 * (((real[1] - made[1]) ** 2).sum() + ((real[2] - made[2]) ** 2).sum())
    assert outcome.values["Loss/grand"] == pytest.approx(loss.item(), rel=1e-9)
    parameters = dict(synthetic.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    for name, gradient in zip(parameters, expected):
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-12), name


def test_the_model_trains_along_begins_anew_and_goes_on_from_a_state():
    def weights_over(objective, steps):
        synthetic, seen = tiny_set(pairs=6), []
        for step in steps:
            objective(synthetic, step, torch.Generator().manual_seed(step))
            objective.commit()
            seen.append(torch.cat(list(objective._weights)))
        return seen

    objective = matching(batch_size=4, reset=3)
    seen = weights_over(objective, range(1, 6))
    assert all(not torch.equal(a, b) for a, b in zip(seen, seen[1:]))
    fresh = weights_over(matching(batch_size=4, reset=3), [4])  # the first step after a reset
    assert torch.equal(seen[3], fresh[0])
    first = matching(batch_size=4, reset=3)
    weights_over(first, [1])
    again = matching(batch_size=4, reset=3)
    assert again.fits(first.state())
    again.load_state(first.state())
    assert torch.equal(weights_over(again, [2])[0], seen[1])


def test_a_step_that_is_cut_off_leaves_nothing_behind():
    objective, synthetic = matching(batch_size=4), tiny_set(pairs=6)
    objective(synthetic, 1, torch.Generator().manual_seed(1))
    assert objective.state() == {"model": None}


@pytest.mark.parametrize("more", [[], ["--image_trainable", "false", "--no_aug"]])
def test_a_run_moves_the_set_and_goes_on_to_the_byte(here, more):
    tag, few = f"cov{len(more)}", [*COV, "--num_eval", "1", "--save_it", "1", "--reset_it", "2", *more]
    whole = distill(here, f"{tag}_whole", *few)  # needs no experts of this protocol
    distill(here, f"{tag}_stopped", *few, "--Iteration", "2")
    again = distill(here, f"{tag}_stopped", *few, "--resume", "auto")
    assert (whole / "distilled_3.pt").read_bytes() == (again / "distilled_3.pt").read_bytes()
    assert [line["Loss/grand"] > 0 for line in read_log(whole) if "Loss/grand" in line] == [True] * 3
    assert (whole / "distilled_0.pt").read_bytes() != (whole / "distilled_3.pt").read_bytes()

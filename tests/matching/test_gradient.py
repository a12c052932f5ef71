"""The matching gradient against autograd through the whole unroll, in float64, with dropout .5 alive."""

import pytest
import torch
from builders import tiny_model
from torch import nn

from distill_utils.matching import oracles
from distill_utils.matching.gradient import Matcher, matching_step
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.weights import Weights, flatten, tower_parameters

PAIRS, BATCH, TEXT_DIM, TAU = 7, 4, 6, 0.5


def problem(sim_type="lowrank", steps=4, seed=0, dtype=torch.float64):
    """(model, synthetic set with every parameter away from its start, start, target, minibatches)."""
    model = tiny_model(text_dim=TEXT_DIM, dtype=dtype).train()
    torch.manual_seed(seed)
    synthetic = SyntheticSet(
        torch.randn(PAIRS, 3, 9, 8),
        torch.randn(PAIRS, TEXT_DIM),
        build_similarity(sim_type, PAIRS, rank=2, alpha=1.5),
        0.3,
        0.2,
    )
    synthetic = synthetic.to(dtype)
    with torch.no_grad():
        for parameter in synthetic.similarity.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    start = Weights(*(flatten([p.detach() for _, p in tower]) for tower in tower_parameters(model)))
    target = Weights(*(vector + 0.1 * torch.randn_like(vector) for vector in start))
    minibatches = [torch.randperm(PAIRS)[:BATCH] for _ in range(steps)]
    return model, synthetic, start, target, minibatches


def assert_same(synthetic, expected, tolerance):
    for name, parameter in synthetic.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert expected[name].norm() > 0 and error < tolerance, f"{name}: relative error {error:.2e}"


def gradients(synthetic):
    return {name: parameter.grad.clone() for name, parameter in synthetic.named_parameters()}


def compare(problem_, loss_fn, tolerance, *, gradient, second_order, merge=False, **options):
    model, synthetic, start, target, minibatches = problem_
    loss = oracles.unroll(*problem_, loss_fn, gradient=gradient, merge_towers=merge, temperature=TAU, seed=5)
    expected = gradients(synthetic)
    matcher = Matcher(
        model,
        loss_fn,
        gradient=gradient,
        second_order=second_order,
        merge_towers=merge,
        temperature=TAU,
        **options,
    )
    ours = matcher(synthetic, start, target, minibatches, seed=5)
    assert [float(value) for value in ours] == pytest.approx([float(value) for value in loss], rel=1e-10)
    assert_same(synthetic, expected, tolerance)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("gradient", ["full", "truncated"])
@pytest.mark.parametrize("second_order, tolerance", [("forward", 1e-9), ("reverse", 1e-9), ("finite", 1e-5)])
def test_equals_the_unroll(steps, gradient, second_order, tolerance):
    compare(problem(steps=steps), LOSSES["WBCE"], tolerance, gradient=gradient, second_order=second_order)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sim_type", ["lowrank", "full", "identity"])
def test_every_loss_and_similarity(loss, sim_type):
    compare(problem(sim_type), LOSSES[loss], 1e-9, gradient="full", second_order="forward")


@pytest.mark.parametrize("gradient", ["full", "truncated"])
def test_merged_objective(gradient):
    compare(problem(), LOSSES["InfoNCE"], 1e-9, gradient=gradient, second_order="reverse", merge=True)


def test_full_and_truncated_differ_only_beyond_one_step():
    for steps, same in ((1, True), (4, False)):
        grads = []
        for gradient in ("full", "truncated"):
            model, synthetic, *rest = problem(steps=steps)
            matching_step(
                model,
                synthetic,
                *rest,
                LOSSES["WBCE"],
                gradient=gradient,
                second_order="forward",
                temperature=TAU,
                seed=5,
            )
            grads.append(synthetic.images.grad.clone())
        assert torch.allclose(*grads, rtol=1e-10, atol=1e-14) == same


def test_target_equal_to_the_end_gives_no_gradient():
    model, synthetic, start, _, minibatches = problem()
    model.eval()
    path_end = _train(model, synthetic, start, minibatches)
    for second_order in ("forward", "finite"):
        loss = matching_step(
            model,
            synthetic,
            start,
            path_end,
            minibatches,
            LOSSES["WBCE"],
            gradient="full",
            second_order=second_order,
            temperature=TAU,
        )
        assert float(loss.grand) < 1e-20
        assert all(parameter.grad.abs().max() < 1e-8 for parameter in synthetic.parameters())


def _train(model, synthetic, start, minibatches):
    """Plain SGD with torch.optim, as a student would."""
    towers = tower_parameters(model)
    optimizer = torch.optim.SGD(
        [
            {"params": [p for _, p in tower], "lr": lr.item()}
            for tower, lr in zip(towers, (synthetic.lr_img, synthetic.lr_txt))
        ]
    )
    for ids in minibatches:
        image_features, text_features = model(synthetic.images[ids].detach(), synthetic.texts[ids].detach())
        optimizer.zero_grad()
        LOSSES["WBCE"](image_features @ text_features.T / TAU, synthetic.similarity(ids).detach()).backward()
        optimizer.step()
    return Weights(*(flatten([p.detach().clone() for _, p in tower]) for tower in towers))


def test_gradients_are_set_not_accumulated_and_the_model_is_left_alone():
    model, synthetic, *rest = problem()
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    matching_step(model, synthetic, *rest, LOSSES["WBCE"], temperature=TAU)
    first = synthetic.images.grad.clone()
    matching_step(model, synthetic, *rest, LOSSES["WBCE"], temperature=TAU)
    assert torch.equal(first, synthetic.images.grad)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters()))


def test_running_statistics_are_refused():
    model, synthetic, *rest = problem()
    model.image_encoder.norm = nn.BatchNorm2d(4)
    with pytest.raises(UserError, match="BatchNorm2d"):
        matching_step(model, synthetic, *rest, LOSSES["WBCE"])


def test_equals_the_references_two_passes():
    problem_ = problem()
    model, synthetic, start, target, minibatches = problem_
    for merge in (False, True):
        oracles.reference(*problem_, LOSSES["WBCE"], merge_towers=merge, temperature=TAU, seed=5)
        expected = gradients(synthetic)
        matching_step(
            *problem_,
            LOSSES["WBCE"],
            gradient="truncated",
            second_order="reverse",
            merge_towers=merge,
            temperature=TAU,
            seed=5,
        )
        assert_same(synthetic, expected, 1e-9)


@pytest.mark.parametrize("gradient", ["full", "truncated"])
@pytest.mark.parametrize("second_order", ["forward", "reverse", "finite"])
def test_a_matcher_carries_nothing_wrong_over_to_the_next_step(gradient, second_order):
    """Longer and shorter inner loops and other starts, by one Matcher, with the path on a named device."""
    tolerance = 1e-5 if second_order == "finite" else 1e-9
    model, *_ = problem()
    matcher = Matcher(
        model,
        LOSSES["WBCE"],
        gradient=gradient,
        second_order=second_order,
        temperature=TAU,
        path_device="cpu",
    )
    for n, steps in enumerate((3, 5, 1)):
        _, synthetic, start, target, minibatches = problem(steps=steps, seed=n)
        start = Weights(*(vector * (1 + n) for vector in start))
        oracles.unroll(
            model,
            synthetic,
            start,
            target,
            minibatches,
            LOSSES["WBCE"],
            gradient=gradient,
            temperature=TAU,
            seed=n,
        )
        expected = gradients(synthetic)
        matcher(synthetic, start, target, minibatches, seed=n)
        assert_same(synthetic, expected, tolerance)


def test_losses_without_a_slope_in_z_do_not_break_finite_differences():
    model, synthetic, start, target, minibatches = problem()
    matcher = Matcher(
        model,
        lambda logits, similarity: (logits * 0 + similarity * 0).sum(),
        second_order="finite",
        temperature=TAU,
    )
    matcher(synthetic, start, target, minibatches, seed=5)
    assert synthetic.images.grad.abs().max() == 0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"compile": True, "second_order": "forward"}, "--compile compiles first-order gradients only"),
        ({"precision": "bf16", "second_order": "finite"}, "rounds away the small steps"),
        ({"gradient": "half"}, "must be full or truncated"),
        ({"second_order": "third"}, "one of forward, reverse, finite"),
    ],
)
def test_what_does_not_combine_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        Matcher(tiny_model(), LOSSES["WBCE"], **options)


def test_checkpointing_is_for_finite_alone():
    model = build_model("test_nfnet", 8, pretrained=False, checkpoint_dir="none", grad_checkpointing=True)
    with pytest.raises(UserError, match="--grad_checkpointing recomputes first-order graphs only"):
        Matcher(model, LOSSES["WBCE"], second_order="reverse")

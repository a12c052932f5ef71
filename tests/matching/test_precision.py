"""The matching gradient of a real architecture in the precisions that runs use, against float64."""

import pytest
import torch

from distill_utils.matching.checks import gradient_agreement
from distill_utils.matching.gradient import Matcher, matching_step
from distill_utils.runs.devices import set_precision
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.weights import Weights, flatten, snapshot

PAIRS, BATCH, TEXT_DIM, TAU = 7, 4, 6, 0.5


def gradients(synthetic):
    return {name: parameter.grad.clone() for name, parameter in synthetic.named_parameters()}


def nfnet_problem(dtype, steps=4, size=32, pairs=6, width=8, **options):
    """A real architecture in float32 or float64, matched along a direction of real training: the stiffest
    kind.
    """
    torch.manual_seed(0)
    model = build_model("test_nfnet", width, pretrained=False, checkpoint_dir="none", **options).train()
    synthetic = SyntheticSet(
        torch.randn(pairs, 3, size, size),
        torch.randn(pairs, width),
        build_similarity("lowrank", pairs, rank=2),
        0.1,
        0.1,
    )
    with torch.no_grad():
        for parameter in synthetic.similarity.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    start = snapshot(model)
    optimizer = sgd(model, 0.1, 0.1)
    train_epoch(
        model,
        [(torch.randn(16, 3, size, size), torch.randn(16, width), torch.eye(16)) for _ in range(4)],
        optimizer,
        LOSSES["InfoNCE"],
        TAU,
    )
    start, target = (
        Weights(*(flatten(tower).to(dtype) for tower in shot)) for shot in (start, snapshot(model))
    )
    minibatches = [torch.randperm(pairs)[:5] for _ in range(steps)]
    return model.to(dtype), synthetic.to(dtype), start, target, minibatches


def float32_errors(gradient, second_order, options, **matcher_options):
    """Relative errors of float32 gradients to float64's exact ones, per parameter, and the Matcher."""
    exact_problem = nfnet_problem(torch.float64)
    matching_step(
        *exact_problem, LOSSES["InfoNCE"], gradient=gradient, second_order="forward", temperature=TAU, seed=5
    )
    exact = gradients(exact_problem[1])
    model, synthetic, *rest = nfnet_problem(torch.float32, **options)
    matcher = Matcher(
        model,
        LOSSES["InfoNCE"],
        gradient=gradient,
        second_order=second_order,
        temperature=TAU,
        **matcher_options,
    )
    matcher(synthetic, *rest, seed=5)
    return {
        name: gradient_agreement(parameter.grad, exact[name])["error"]
        for name, parameter in synthetic.named_parameters()
    }, matcher


@pytest.mark.parametrize("gradient", ["full", "truncated"])
@pytest.mark.parametrize(
    "second_order, options, matcher_options, bound",
    [
        ("forward", {}, {}, 1e-4),
        ("reverse", {}, {}, 1e-4),
        ("finite", {}, {}, 1e-2),
        ("finite", {"grad_checkpointing": True}, {}, 1e-2),
        ("finite", {}, {"compile": True}, 1e-2),
        ("forward", {}, {"precision": "bf16"}, 0.2),
        ("reverse", {}, {"precision": "bf16"}, 0.2),
    ],
    ids=["forward", "reverse", "finite", "checkpointing", "compile", "bf16-forward", "bf16-reverse"],
)
def test_float32_error_is_bounded(gradient, second_order, options, matcher_options, bound):
    if matcher_options.get("compile") and gradient == "full":
        pytest.skip("one compilation is enough")
    errors, _ = float32_errors(gradient, second_order, options, **matcher_options)
    print(gradient, second_order, errors)
    assert 0 < errors["images"] < bound and 0 < errors["texts"] < bound


def test_finite_repeats_a_pass_whose_steps_were_far_off():
    model, synthetic, start, target, minibatches = nfnet_problem(torch.float32)
    matcher = Matcher(model, LOSSES["InfoNCE"], temperature=TAU)
    matcher(synthetic, start, target, minibatches, seed=5)
    fitted = {name: value.clone() for name, value in gradients(synthetic).items()}
    repeats = matcher.repeats
    matcher(synthetic, start, target, minibatches, seed=5)
    assert matcher.repeats == repeats, "fitted lengths serve the next outer step"
    matcher._derivative.length = matcher._derivative.length * 1e4
    matcher(synthetic, start, target, minibatches, seed=5)
    assert matcher.repeats > repeats
    assert gradient_agreement(synthetic.images.grad, fitted["images"])["error"] < 2e-2


def test_tf32_needs_cuda():
    with pytest.raises(UserError, match="tf32 needs a CUDA GPU"):
        set_precision("tf32", torch.device("cpu"))
    set_precision("fp32", torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32_process():
    """The switches of products of 10 bits, on; a CPU has them too, though nothing that they switch."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend in backends:
        backend.allow_tf32 = False


@pytest.mark.parametrize(
    "second_order, precision, rounded",
    [
        ("finite", "tf32", False),
        ("finite", "fp32", False),
        ("forward", "fp32", False),  # what --check_gradient compares with
        ("forward", "tf32", True),
        ("reverse", "tf32", True),
    ],
)
def test_what_tf32_may_round(tf32_process, second_order, precision, rounded):
    backends, seen = tf32_process, set()

    def loss(*given):
        seen.update(backend.allow_tf32 for backend in backends)
        return LOSSES["InfoNCE"](*given)

    model, synthetic, *rest = nfnet_problem(torch.float32, steps=1)
    matcher = Matcher(model, loss, second_order=second_order, precision=precision, temperature=TAU)
    matcher(synthetic, *rest, seed=5)
    assert seen == {rounded} and all(backend.allow_tf32 for backend in backends)

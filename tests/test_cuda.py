"""What a GPU could do differently, in bodies that a CPU runs too: on a GPU nothing but the device is new."""

import pytest
import torch
from builders import TinyTask, tiny_model, tiny_set
from commands import distill, long_run

from distill_utils.evaluation import students
from distill_utils.matching import oracles
from distill_utils.matching.checks import gradient_agreement
from distill_utils.matching.derivatives import DERIVATIVES
from distill_utils.matching.gradient import GRADIENTS, Matcher
from distill_utils.runs.devices import exact_products, set_precision
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.weights import Weights, flatten, snapshot

TAU = 0.5
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
two_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs on this machine"
)
each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_gpu)])


def problem(device, *, dropout=True, steps=4):
    """(model, set, start, target, minibatches) in float64, the same numbers on every device."""
    model, synthetic = tiny_model().train(dropout), tiny_set()
    start = Weights(*map(flatten, snapshot(model)))
    draws = torch.Generator().manual_seed(1)
    target = Weights(
        *(vector + 0.1 * torch.randn(len(vector), generator=draws, dtype=vector.dtype) for vector in start)
    )
    minibatches = [torch.randperm(7, generator=draws)[:4].to(device) for _ in range(steps)]
    return model.to(device), synthetic.to(device), start, target, minibatches


def gradients(synthetic):
    return {name: parameter.grad.cpu().clone() for name, parameter in synthetic.named_parameters()}


def assert_agree(found, exact, tolerance):
    for name, value in exact.items():
        assert value.norm() > 0 and gradient_agreement(found[name], value)["error"] < tolerance, name


@each_device
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("second_order", DERIVATIVES)
def test_a_device_finds_the_gradients_of_a_cpu(device, gradient, second_order):
    """Without dropout, whose masks are a device's own; the unroll on a CPU is the judge."""
    cpu = problem("cpu", dropout=False)
    oracles.unroll(*cpu, LOSSES["WBCE"], gradient=gradient, temperature=TAU)
    model, *inner_loop = problem(device, dropout=False)
    Matcher(model, LOSSES["WBCE"], gradient=gradient, second_order=second_order, temperature=TAU)(*inner_loop)
    assert_agree(gradients(inner_loop[0]), gradients(cpu[1]), 1e-5 if second_order == "finite" else 1e-9)


@each_device
@pytest.mark.parametrize("second_order", DERIVATIVES)
def test_both_passes_see_one_dropout_mask(device, second_order):
    model, synthetic, start, target, minibatches = problem(device)
    start, target = (Weights(*(vector.to(device) for vector in weights)) for weights in (start, target))
    inner_loop = synthetic, start, target, minibatches
    oracles.unroll(model, *inner_loop, LOSSES["WBCE"], gradient="full", temperature=TAU, seed=5)
    exact = gradients(synthetic)
    matcher = Matcher(model, LOSSES["WBCE"], gradient="full", second_order=second_order, temperature=TAU)
    matcher(*inner_loop, seed=5)
    assert_agree(gradients(synthetic), exact, 1e-5 if second_order == "finite" else 1e-9)


@each_device
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("second_order", DERIVATIVES)
def test_a_path_that_rests_on_the_cpu_changes_nothing(device, gradient, second_order):
    """Pinned memory, copied while the device computes: over several outer steps, which use it again."""
    found = []
    for path_device in (None, "cpu"):
        model, *inner_loop = problem(device, steps=5)
        how = {"gradient": gradient, "second_order": second_order, "path_device": path_device}
        matcher = Matcher(model, LOSSES["WBCE"], temperature=TAU, **how)
        for seed in range(3):
            matcher(*inner_loop, seed=seed)
        found.append(gradients(inner_loop[0]))
    assert matcher._path._towers.img[0].is_pinned() == (device == "cuda")
    assert_agree(found[1], found[0], 1e-9)


def float32_problem(dtype, device):
    """A real architecture, matched to weights near its own."""
    torch.manual_seed(0)
    model = build_model("test_nfnet", 8, pretrained=False, checkpoint_dir="none").eval()
    similarity = build_similarity("lowrank", 6, rank=2)
    synthetic = SyntheticSet(torch.randn(6, 3, 32, 32), torch.randn(6, 8), similarity, 0.1, 0.1)
    start = Weights(*map(flatten, snapshot(model)))
    target = Weights(*((vector + 0.05 * torch.randn(len(vector))).to(dtype) for vector in start))
    start = Weights(*(vector.to(dtype) for vector in start))
    minibatches = [torch.randperm(6)[:5].to(device) for _ in range(2)]
    return model.to(device, dtype), synthetic.to(device, dtype), start, target, minibatches


def error_of(device, **how):
    """Of the pixels' gradient in float32, to float64's on a CPU."""
    found = []
    for dtype, where, options in (
        (torch.float64, "cpu", {"second_order": "forward"}),
        (torch.float32, device, how),
    ):
        model, *inner_loop = float32_problem(dtype, where)
        Matcher(model, LOSSES["InfoNCE"], temperature=TAU, **options)(*inner_loop)
        found.append(inner_loop[0].images.grad.cpu())
    return gradient_agreement(found[1], found[0])["error"]


@each_device
@pytest.mark.parametrize(
    "second_order, precision, bound",
    [("forward", "fp32", 1e-3), ("forward", "tf32", 0.1), ("reverse", "tf32", 0.1), ("finite", "tf32", 2e-2)],
)
def test_the_error_of_float32_products_is_bounded(device, second_order, precision, bound):
    """Under tf32 `finite` stays exact, and so within its bound of fp32; a CPU knows no tf32."""
    if device == "cuda":
        set_precision(precision, torch.device(device))
    try:
        error = error_of(device, second_order=second_order, precision=precision)
    finally:
        set_precision("fp32", torch.device(device))
    assert 0 < error < bound


@no_gpu  # a CPU's is tests/matching/test_precision.py's, which takes minutes to compile
def test_a_compiled_encoder_gives_the_same_gradient():
    with exact_products():
        assert 0 < error_of("cuda", second_order="finite", compile=True) < 2e-2


@each_device
def test_every_student_has_a_dropout_of_its_own_that_can_be_had_again(device, monkeypatch):
    masks = []

    def training(model, *, epochs, **how):
        masks.append(torch.rand(8, device=device).cpu())
        for epoch in range(1, epochs + 1):
            yield epoch, 0.0

    monkeypatch.setattr(students, "train_in_turn", training)
    task, synthetic = TinyTask(), tiny_set().float()
    for gallery in task.galleries.values():
        gallery.images = torch.nn.functional.interpolate(gallery.images.float(), (32, 32))
        gallery.texts = gallery.texts.float()

    def make_model():
        return build_model("test_nfnet", 6, pretrained=False, checkpoint_dir="none")

    for _ in range(2):
        students.evaluate_synthetic_set(synthetic, task, make_model, num_eval=3, epochs=1, device=device)
    assert all(map(torch.equal, masks[:3], masks[3:]))
    assert len({tuple(mask.tolist()) for mask in masks}) == 3


def test_building_a_tower_leaves_the_gpus_generators_alone(monkeypatch):
    """Students whose tower was built after they were seeded would all draw one mask there."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    build_model("test_nfnet", 6, pretrained=False, checkpoint_dir="none")
    assert not seeded


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=two_gpus)])
def test_two_processes_distil_what_one_does(device, forker, here):
    """gloo between CPUs, NCCL between GPUs."""
    flags = [*"--device auto --Iteration 3 --eval_it 3 --syn_steps 3".split(), "--image_size", "32"]
    sets = []
    for processes in (1, 2):
        name = f"{device}_{processes}"
        argv = long_run(here, name, *flags[2 if device == "cpu" else 0 :])
        assert forker.together("distill_lors", argv, here, processes) == [0] * processes
        sets.append(SyntheticSet.load(here / f"logged_files/toy/{name}/distilled_3.pt"))
    for one, other in zip(*(synthetic.parameters() for synthetic in sets)):
        if device == "cpu":
            assert torch.equal(one, other)
        else:  # its convolutions add up in an order of their own
            assert gradient_agreement(one, other)["error"] < 1e-4


@no_gpu
def test_a_whole_distillation_on_a_gpu_is_near_that_of_a_cpu(here):
    """After a step whose dropout masks differ."""
    cpu, gpu = (
        distill(here, f"on_{device}", "--device", device, "--Iteration", "1", "--num_eval", "1")
        for device in ("cpu", "cuda")
    )
    one, other = (SyntheticSet.load(folder / "distilled_1.pt") for folder in (cpu, gpu))
    assert gradient_agreement(other.images, one.images)["error"] < 1e-2

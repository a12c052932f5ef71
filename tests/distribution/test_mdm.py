"""MDM: the kernel distance, the merged teachers, the gradient, and whole runs."""

import math

import pytest
import torch
import torch.nn.functional as F
from builders import TinyTask, tiny_model, tiny_set
from commands import distill, read_log
from sameness import assert_same_run

from distill_utils.distribution.mdm import ModalityMatching, draw_snapshots, kernel_distance, merged
from distill_utils.experts.trajectories import ExpertTrajectories, write_expert
from distill_utils.runs.processes import ALONE
from distill_utils.training.losses import LOSSES
from networks.weights import flatten, load_flat, snapshot

MDM = "--objective mdm --sim_type identity --loss_type InfoNCE --clip_grad 1 --lr_img 1 --lr_txt 1".split()


def unit(*shape, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=numbers, dtype=torch.float64), dim=-1)


def twin(a, b, sigma):
    """The definition, cell by cell."""

    def k(x, y):
        return math.exp(-(math.acos(max(-1.0, min(1.0, float(x @ y)))) ** 2) / (2 * sigma**2))

    def mean(xs, ys):
        return sum(k(x, y) for x in xs for y in ys) / (len(xs) * len(ys))

    return math.sqrt(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_the_kernel_distance_is_its_definition_symmetric_and_zero_for_equal_sets():
    a, b = unit(5, 4), unit(7, 4, seed=1)
    assert kernel_distance(a, b, 0.5).item() == pytest.approx(twin(a, b, 0.5), rel=1e-3)
    assert kernel_distance(a, b, 0.5).item() == pytest.approx(kernel_distance(b, a, 0.5).item(), rel=1e-12)
    assert kernel_distance(a, a[torch.randperm(5)], 0.5).item() < 1e-3
    near, far = F.normalize(a + 0.05 * unit(5, 4, seed=2), dim=-1), -a
    assert kernel_distance(a, near, 0.5) < 0.3 * kernel_distance(a, far, 0.5)


def test_its_gradient_is_that_of_finite_differences_and_finite_where_sets_are_equal():
    a, b = unit(4, 3), unit(6, 3, seed=1)
    free = (3 * a).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernel_distance(F.normalize(x, dim=-1), b, 0.7), free)
    same = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernel_distance(same, a, 0.5), same)
    assert torch.isfinite(slope).all()


def experts_of(folder, same_start, experts=3, epochs=2):
    for n in range(experts):
        model = tiny_model(dtype=torch.float32, seed=0 if same_start else n)
        shots = [snapshot(model)]
        for epoch in range(epochs):
            numbers = torch.Generator().manual_seed(10 * n + epoch)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 + 0.1 * torch.randn(parameter.shape, generator=numbers))
            shots.append(snapshot(model))
        write_expert(folder, n, shots)
    return ExpertTrajectories(folder)


def test_a_teacher_is_between_two_experts_tensor_by_tensor(tmp_path):
    experts = experts_of(tmp_path, same_start=True)
    found = merged(experts, (0, 1), (2, 2))
    for tower, vector in enumerate(found):
        expected = []
        starts, ones, others = (
            experts.snapshots(expert)[tower][epoch] for expert, epoch in ((0, 0), (0, 1), (2, 2))
        )
        for start, one, other in zip(starts, ones, others):
            d1, d2 = (one - start).double(), (other - start).double()
            cos = float((d1 * d2).sum() / (d1.norm() * d2.norm()))
            c = 2 * max(cos, 0) / (1 + max(cos, 0))
            expected.append((start.double() + 0.5 * c * (d1 + d2) / 2).flatten())
        assert torch.allclose(vector.double(), torch.cat(expected), rtol=1e-5, atol=1e-6)
    halfway = merged(experts, (1, 2), (1, 2))  # one snapshot twice: cos = c = 1
    start, end = (flatten(experts.snapshots(1).img[epoch]) for epoch in (0, 2))
    assert torch.allclose(halfway.img, (start + end) / 2, atol=1e-6)


@pytest.mark.parametrize("same_start", [True, False])
def test_snapshots_are_of_two_experts_only_where_these_begin_at_one_point(tmp_path, same_start):
    experts, numbers = experts_of(tmp_path, same_start), torch.Generator().manual_seed(0)
    drawn = [draw_snapshots(experts, numbers) for _ in range(60)]
    assert {epoch for pair in drawn for _, epoch in pair} == {1, 2}
    assert {one[0] for one, _ in drawn} == {0, 1, 2}
    assert (len({(one[0], other[0]) for one, other in drawn}) > 3) == same_start


def objective(folder, **how):
    task = TinyTask(pairs=20)

    def real_batch(size, generator):
        pairs = torch.randperm(20, generator=generator)[:size]
        return task._images[pairs], task._texts[pairs]

    return ModalityMatching(
        tiny_model(), experts_of(folder, True), real_batch, world=ALONE, **how
    ), real_batch


def test_the_gradient_is_that_of_the_loss_written_out(tmp_path):
    synthetic, how = tiny_set(pairs=5), {"batch_size": 8, "weight": 0.3, "sigma": 0.6, "temperature": 0.2}
    matching, real_batch = objective(tmp_path, **how)
    outcome = matching(synthetic, 1, torch.Generator().manual_seed(4))
    found = {name: parameter.grad.clone() for name, parameter in synthetic.named_parameters()}

    numbers = torch.Generator().manual_seed(4)
    teacher = load_flat(tiny_model(), merged(matching.experts, *draw_snapshots(matching.experts, numbers)))
    order = torch.randperm(5, generator=numbers)
    real = [side.detach() for side in teacher.eval()(*real_batch(8, numbers))]
    v, t = teacher(synthetic.images[order], synthetic.texts[order])
    loss = LOSSES["InfoNCE"](v @ t.T / 0.2, synthetic.similarity()[order][:, order])
    for sign in (1, -1):
        sides = [F.normalize(a + sign * b, dim=-1) for a, b in (real, (v, t))]
        loss = loss + 0.3 * kernel_distance(*sides, 0.6)
    assert outcome.values["Loss/grand"] == pytest.approx(loss.item(), rel=1e-9)
    parameters = dict(synthetic.named_parameters())
    expected = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    for name, gradient in zip(parameters, expected):
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-12), name
    assert found["images"].abs().sum() > 0 and found["lr_img"] == found["lr_txt"] == 0


def test_the_loss_of_a_set_that_is_the_real_batch_has_no_distance_left(tmp_path):
    matching, _ = objective(tmp_path, batch_size=5)
    synthetic = tiny_set(pairs=5)
    matching.real_batch = lambda size, generator: (synthetic.images.detach(), synthetic.texts.detach())
    values = matching(synthetic, 1, torch.Generator().manual_seed(0)).values
    assert values["Loss/agreement"] < 1e-3 and values["Loss/discrepancy"] < 1e-3


@pytest.mark.parametrize("more", [[], ["--image_trainable", "false", "--no_aug"]])
def test_a_run_moves_the_set_goes_on_and_divides(here, forker, more):
    if more:
        more = [*more, "--buffer_path", f"{here}/mdm_heads"]
        from commands import EXPERTS, toy

        import buffer

        buffer.main([*toy(here), *EXPERTS, *more, "--name", "mdm_heads"])
    tag = f"mdm{len(more)}"
    few = [*MDM, "--num_eval", "1", "--save_it", "1", *more]
    whole = distill(here, f"{tag}_whole", *few)
    distill(here, f"{tag}_stopped", *few, "--Iteration", "2")
    again = distill(here, f"{tag}_stopped", *few, "--resume", "auto")
    assert (whole / "distilled_3.pt").read_bytes() == (again / "distilled_3.pt").read_bytes()
    lines = [line for line in read_log(whole) if "Loss/grand" in line]
    assert len(lines) == 3 and all("Gradient/norm" in line for line in lines)
    assert (whole / "distilled_0.pt").read_bytes() != (whole / "distilled_3.pt").read_bytes()
    if not more:
        from commands import DISTILL, toy

        argv = [*toy(here), *DISTILL, "--buffer_path", f"{here}/buffers", "--name", f"{tag}_divided", *few]
        assert forker.together("distill_lors", argv, here) == [0, 0], (here / "output.txt").read_text()[-900:]
        assert_same_run(whole, here / f"logged_files/toy/{tag}_divided")

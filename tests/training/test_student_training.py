"""A student's training against SGD written out, in float64 and with dropout alive."""

import pytest
import torch
from builders import tiny_model, tiny_set, trained_by_hand

from distill_utils.runs.errors import Diverged
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import LOSSES
from distill_utils.training.students import train_in_turn, train_student

TAU, LRS = 0.4, (0.3, 0.05)


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("loss", ["WBCE", "InfoNCE"])
def test_a_student_learns_by_momentum_decay_and_a_tenth_of_the_rate_from_half_time_on(epochs, loss):
    synthetic, (student, twin) = tiny_set(), (tiny_model().eval() for _ in range(2))
    torch.manual_seed(3)
    recipe = {"epochs": epochs, "batch_size": 3, "loss_fn": LOSSES[loss], "temperature": TAU}
    numbers = torch.Generator().manual_seed(4)
    told = list(train_student(student, synthetic, lr_img=LRS[0], lr_txt=LRS[1], generator=numbers, **recipe))

    torch.manual_seed(3)
    loader = synthetic.loader(3, generator=torch.Generator().manual_seed(4))
    twin.train()
    velocity = None
    for epoch in range(1, epochs + 1):
        rates = [lr * (0.1 if epoch > epochs // 2 else 1) for lr in LRS]
        mean, velocity = trained_by_hand(
            twin, loader, LOSSES[loss], TAU, rates, velocity, momentum=0.9, decay=5e-4
        )
        assert told[epoch - 1] == (epoch, pytest.approx(mean, rel=1e-9))
    for found, wanted in zip(student.parameters(), twin.parameters()):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_an_epoch_is_plain_sgd_and_tells_what_it_saw():
    synthetic, (model, twin) = tiny_set(), (tiny_model() for _ in range(2))
    batches = [(*synthetic.minibatch(ids), ids) for ids in (torch.tensor([0, 2, 4]), torch.tensor([5, 1]))]
    batches = [[value.detach() for value in batch] for batch in batches]
    seen = []
    torch.manual_seed(1)
    mean = train_epoch(
        model, batches, sgd(model, *LRS), LOSSES["WBCE"], TAU, observe=lambda *told: seen.append(told)
    )
    torch.manual_seed(1)
    wanted, _ = trained_by_hand(twin, batches, LOSSES["WBCE"], TAU, LRS)
    assert mean == pytest.approx(wanted, rel=1e-9)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(model.parameters(), twin.parameters()))
    assert [ids.tolist() for _, ids in seen] == [[0, 2, 4], [5, 1]]
    assert [logits.shape for logits, _ in seen] == [(3, 3), (2, 2)]
    assert not any(logits.requires_grad for logits, _ in seen)


def test_a_student_sees_every_pair_once_an_epoch_in_an_order_of_its_own():
    synthetic = tiny_set(pairs=20)
    loader = synthetic.loader(6, generator=torch.Generator().manual_seed(0))
    orders = []
    for _ in range(2):
        images = torch.cat([batch[0] for batch in loader])
        orders.append([int((synthetic.images == image).all(dim=(1, 2, 3)).nonzero()) for image in images])
    assert orders[0] != orders[1] and list(range(20)) not in orders
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))


def test_a_loss_that_is_not_finite_ends_the_training():
    synthetic, model = tiny_set(), tiny_model()
    with torch.no_grad():
        synthetic.texts[3] = float("nan")
    with pytest.raises(Diverged, match="training loss became nan"):
        train_epoch(model, synthetic.loader(7), sgd(model, 0.1, 0.1), LOSSES["WBCE"], TAU)


@pytest.mark.parametrize("restart", [False, True])
def test_phases_are_trained_one_after_another(restart):
    """Every phase is its own training by hand; its rates have fallen, or begin anew."""
    sets = [tiny_set(pairs=6, seed=1), tiny_set(pairs=5, seed=2)]
    recipe = {"batch_size": 3, "loss_fn": LOSSES["WBCE"], "temperature": 0.3}
    student, twin = tiny_model(dropout=0.0), tiny_model(dropout=0.0)
    numbers, numbers_of_twin = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    phases = [
        {"synthetic": s, "images": None, "lr_img": 0.02, "lr_txt": 0.01 * (n + 1)} for n, s in enumerate(sets)
    ]
    told = list(train_in_turn(student, phases, epochs=4, restart_rates=restart, generator=numbers, **recipe))
    assert [epoch for epoch, _ in told] == list(range(1, 9))
    losses = []
    for n, synthetic in enumerate(sets):
        velocity = None
        for epoch in range(4):
            fall = 0.1 if epoch >= 2 or n == 1 and not restart else 1.0
            batches = synthetic.loader(3, generator=numbers_of_twin)
            rates = 0.02 * fall, 0.01 * (n + 1) * fall
            how = {"momentum": 0.9, "decay": 5e-4, "velocity": velocity}
            loss, velocity = trained_by_hand(twin, batches, LOSSES["WBCE"], 0.3, rates, **how)
            losses.append(loss)
    assert [loss for _, loss in told] == pytest.approx(losses, rel=1e-9)
    for one, other in zip(student.parameters(), twin.parameters()):
        assert torch.allclose(one, other, rtol=1e-9)

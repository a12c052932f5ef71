"""CovMatch (NeurIPS 2025): the cross-covariance of image and text features, matched under a model that trains
along.
"""

import torch

from distill_utils.distribution.pairs import fill_gradients, synthetic_batch
from distill_utils.matching.objective import Outcome
from distill_utils.matching.student import replayed
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import identity_target, info_nce
from networks.weights import Weights, flatten, load_flat, snapshot


class CovarianceMatching:
    """|rho C_real - C_syn|_F^2 + lam (|mean v_real - mean v_syn|^2 + |mean t_real - mean t_syn|^2).

    C = 1/B sum_i (h_v - mean)(h_t - mean)^T over a batch, of what goes into the heads: h_v what the image
    encoder makes of an image, h_t the text embedding. v and t are what the heads make of them, not
    normalised. The model trains on a real batch after every step and begins anew every `reset` steps. Our
    readings, for the text encoder is frozen here: h_t is the learned text vector itself; where all of the
    image tower trains it has no head, and v = h_v.

    make_model() -> TwoTower. real_batch(size, generator) -> (images, texts). lrs: of the model's SGD. world:
    the processes of the job, each of which does the same.
    """

    def __init__(
        self,
        make_model,
        real_batch,
        *,
        world,
        batch_size=64,
        rho=1.0,
        weight=0.1,
        reset=50,
        lrs=(0.1, 0.1),
        temperature=0.07,
    ):
        self.make_model, self.real_batch, self.world = make_model, real_batch, world
        self.batch_size, self.rho, self.weight, self.reset = batch_size, rho, weight, reset
        self.lrs, self.temperature = lrs, temperature
        self._model = self._weights = self._next = None

    def __call__(self, synthetic, step, draws):
        model = self._begin(synthetic, step, draws)
        real_pairs = self.real_batch(self.batch_size, draws)
        images, texts, _ = synthetic_batch(synthetic, self.batch_size, draws)
        with torch.no_grad():
            real = model.around_heads(*real_pairs)
        with torch.enable_grad():
            made = model.around_heads(images, texts)
            gap = self.rho * cross_covariance(*real[:2]) - cross_covariance(*made[:2])
            means = sum((a.mean(0) - b.mean(0)).square().sum() for a, b in zip(real[2:], made[2:]))
            losses = {"covariance": gap.square().sum(), "means": self.weight * means}
        values = fill_gradients(synthetic, losses, self.world)
        with replayed(int(torch.randint(1 << 62, (), generator=draws)), synthetic.images.device):
            self._next = self._trained(model, *real_pairs)
        return Outcome(values, {"age": (step - 1) % self.reset})

    def _begin(self, synthetic, step, draws):
        """The model as it stands before this step, in eval mode."""
        device = synthetic.images.device
        seed = int(torch.randint(1 << 62, (), generator=draws))
        fresh = self._weights is None or (step - 1) % self.reset == 0
        if fresh or self._model is None:
            with replayed(seed, device):
                self._model = self.make_model().to(device)
        if not fresh:
            load_flat(self._model, self._weights)
        return self._model.eval()

    def _trained(self, model, images, texts):
        """The flat weights of the model after a step of SGD on real pairs by InfoNCE."""
        batch = images, texts, identity_target(len(texts), texts)
        train_epoch(model, [batch], sgd(model, *self.lrs), info_nce, self.temperature)
        return Weights(*map(flatten, snapshot(model)))

    def commit(self):
        self._weights = self._next

    def state(self):
        return {"model": None if self._weights is None else list(self._weights)}

    def fits(self, state):
        model = state.get("model")
        return model is None or len(model) == 2 and all(isinstance(value, torch.Tensor) for value in model)

    def load_state(self, state):
        self._weights = state.get("model") and Weights(*state["model"])


def cross_covariance(images, texts):
    """C [V, T] of features [B, V] and [B, T]."""
    return (images - images.mean(0)).T @ (texts - texts.mean(0)) / len(images)

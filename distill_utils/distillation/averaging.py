"""The moving average of a set over the outer steps, which is then what a run evaluates and saves."""

from copy import deepcopy

import torch


class Average:
    """a_k = d a_{k-1} + (1 - d) z_k, a_0 = z_0, of images, texts and S over the outer steps k (PTM-ST).

    S is averaged by its parameters: its cells where it is full, its factors where it is of low rank (our
    reading). The learned rates are the set's own.
    """

    def __init__(self, synthetic, decay):
        self.synthetic, self.decay = synthetic, decay
        self.average = deepcopy(synthetic).requires_grad_(False)
        self.average.meta = synthetic.meta  # one for both, as they are one set

    @torch.no_grad()
    def update(self):
        """The set has moved by an outer step."""
        for name, mean in self.average.named_parameters():
            now = self.synthetic.get_parameter(name)
            mean.copy_(now) if name in ("lr_img", "lr_txt") else mean.lerp_(now, 1 - self.decay)

    def begin(self):
        """Begin anew at what the set is now."""
        self._copy(self.synthetic.parameters())

    @torch.no_grad()
    def state(self):
        return [mean.clone() for mean in self.average.parameters()]

    def fits(self, state):
        """Whether `load_state` can take this; None is of a run without an average."""
        shapes = [mean.shape for mean in self.average.parameters()]
        tensors = isinstance(state, list) and all(isinstance(value, torch.Tensor) for value in state)
        return state is None or tensors and [value.shape for value in state] == shapes

    def load_state(self, state):
        self._copy(self.synthetic.parameters() if state is None else state)

    @torch.no_grad()
    def _copy(self, values):
        for mean, value in zip(self.average.parameters(), values):
            mean.copy_(value)

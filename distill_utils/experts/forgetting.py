"""How often an expert forgot a pair while it trained."""

import torch

from distill_utils.experts.folder import forgetting_files
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import load_tensors


class Forgetting:
    """How often an expert got a pair wrong that it had right an epoch before (Toneva et al. 2019, for pairs).

    Right: in its batch, the pair's image and text are each other's best; of equals, all are. `events` and
    `learned`, whether it was ever right, are [P].
    """

    def __init__(self, pairs, device, saved=None):
        kinds = {"events": torch.int16, "learned": torch.bool, "right": torch.bool}
        self._state = {
            key: (saved[key] if saved else torch.zeros(pairs, dtype=kind)).to(device)
            for key, kind in kinds.items()
        }

    def __call__(self, logits, pairs):
        own, pairs = logits.diagonal(), pairs.to(logits.device)
        right = (own >= logits.amax(dim=0)) & (own >= logits.amax(dim=1))
        self._state["events"][pairs] += (self._state["right"][pairs] & ~right).short()
        self._state["learned"][pairs] |= right
        self._state["right"][pairs] = right

    def state(self):
        return {key: value.cpu() for key, value in self._state.items()}


def read_forgetting(folder, pairs):
    """(events, learned) [P], summed over the experts of a folder, as buffer.py recorded them."""
    files = forgetting_files(folder)
    if not files:
        raise UserError(
            f"{folder} holds no forgetting_*.pt, which buffer.py records while it trains experts (published "
            "buffers have none)."
        )
    totals = [torch.zeros(pairs, dtype=torch.long) for _ in range(2)]
    for file in files:
        record = load_tensors(file)
        values = [record.get(key) for key in ("events", "learned")] if isinstance(record, dict) else [None]
        if not all(isinstance(value, torch.Tensor) and value.shape == (pairs,) for value in values):
            raise UserError(
                f"{file} does not hold the forgetting events of {pairs} train pairs: it is of another data "
                "set."
            )
        for total, value in zip(totals, values):
            total += value.long()
    return totals

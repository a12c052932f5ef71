"""An expert in training, on disk: a file per epoch, from which any process goes on."""

import shutil
from pathlib import Path

import torch

from distill_utils.runs.errors import Diverged
from distill_utils.runs.reading import read_json
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.runs.writing import write_json
from networks.weights import Weights, snapshot, tower_parameters


class Progress:
    """What there is of an expert in training: a file per epoch, whole or absent, from which any process goes
    on.
    """

    def __init__(self, folder, n, keep):
        self.folder, self.keep = Path(folder) / f"partial_{n}", keep

    def _file(self, epoch):
        return self.folder / f"epoch_{epoch}.pt"

    def _epochs(self):
        """Those whose weights are saved, in order."""
        return sorted(int(file.stem.removeprefix("epoch_")) for file in self.folder.glob("epoch_*.pt"))

    def history(self):
        """{"epoch", "attempt", "lines" of the log, "curve"} after the last epoch, or None where none was
        saved.
        """
        epochs = self._epochs()
        return read_json(self._file(epochs[-1]).with_suffix(".json")) if epochs else None

    def weights(self, epoch):
        return load_tensors(self._file(epoch))

    def save(self, model, history, forgetting):
        """After an epoch: all that the next one depends on. Epochs that no one reads again are dropped."""
        epoch, weights = history["epoch"], snapshot(model)
        if not all(torch.isfinite(piece).all() for tower in weights for piece in tower):
            raise Diverged(f"A weight became infinite in epoch {epoch}.")
        write_json(self._file(epoch).with_suffix(".json"), history)
        buffers = {name: value.cpu() for name, value in model.named_buffers()}
        save_tensors(
            self._file(epoch), weights._asdict() | {"buffers": buffers, "forgetting": forgetting.state()}
        )
        if epoch - 1 >= self.keep:
            self._file(epoch - 1).unlink(missing_ok=True)

    def snapshots(self):
        """The snapshots to keep, epochs 0 .. keep - 1."""
        return [Weights(saved["img"], saved["txt"]) for saved in map(self.weights, range(self.keep))]

    def clear(self):
        """Forget it all, from the last epoch down: what is left if this is cut short is an earlier state of
        the same expert.
        """
        for epoch in reversed(self._epochs()):
            self._file(epoch).unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def load_weights(model, saved):
    """The model as it was when `saved` was saved."""
    with torch.no_grad():
        for tower, pieces in zip(tower_parameters(model), (saved["img"], saved["txt"])):
            for (_, parameter), piece in zip(tower, pieces):
                parameter.copy_(piece)
        for name, buffer in model.named_buffers():
            buffer.copy_(saved["buffers"][name])
    return model

"""An expert in training, on disk: a file per epoch, from which any process goes on."""

import shutil
from pathlib import Path

import torch

from distill_utils.runs.errors import Diverged, UserError
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
        names = (file.stem.removeprefix("epoch_") for file in self.folder.glob("epoch_*.pt"))
        return sorted(int(name) for name in names if name.isdecimal())

    def history(self):
        """{"epoch", "attempt", "lines" of the log, "curve"} after the last epoch, or None where none was
        saved.
        """
        epochs = self._epochs()
        if not epochs:
            return None
        file = self._file(epochs[-1]).with_suffix(".json")
        history = read_json(file)
        if history is None:  # another process has just finished the expert
            return None
        self._require(history, {"epoch": int, "attempt": int, "lines": list, "curve": list}, file)
        return history

    def weights(self, epoch):
        saved = load_tensors(self._file(epoch))
        kinds = {"img": (list, tuple), "txt": (list, tuple), "buffers": dict, "forgetting": dict}
        self._require(saved, kinds, self._file(epoch))
        return saved

    def _require(self, value, kinds, file):
        if not isinstance(value, dict) or not all(isinstance(value.get(key), kinds[key]) for key in kinds):
            raise UserError(
                f"{file} is not what an expert in training leaves: without {self.folder} it begins anew."
            )

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

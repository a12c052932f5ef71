"""Expert trajectories on disk, in the reference's format: who writes them, who reads a start and a target.

`<folder>/{img,txt}_replay_buffer_{n}.pt` each hold a list of experts, an expert a list of snapshots (before
training and after each epoch), a snapshot the tower's parameters in order. `meta.yaml` beside them says what
they are weights of. With `--keep_snapshots` an image tower's first snapshot may be an empty list: it is then
the one in `img_start.pt`, which experts that start from the same pretrained weights share.
"""

import ctypes
import mmap
import re
import sys
from contextlib import suppress
from pathlib import Path

import torch

from distill_utils.experts.folder import expert_files
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import locked
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.runs.writing import write_text
from networks.weights import TOWERS, Weights, flatten, tower_parameters

SHARED_START = "img_start.pt"


def write_expert(folder, n, snapshots, dtype=torch.float32, share_start=False):
    """Both files of expert n from its snapshots; the text file last: two files are a whole expert.

    share_start: the first image snapshot goes to the folder's `img_start.pt` and is left out here, unless
    another is there already.
    """
    towers = [[[piece.to(dtype) for piece in shot] for shot in tower] for tower in zip(*snapshots)]
    if share_start and _is_shared_start(folder, towers[0][0]):
        towers[0][0] = []
    for path, tower in zip(expert_files(folder, n), towers):
        save_tensors(path, [tower])


def _is_shared_start(folder, start):
    path = Path(folder) / SHARED_START
    with locked(Path(folder) / ".locks" / SHARED_START):
        if not path.exists():
            save_tensors(path, start)
    shared = load_tensors(path)
    return len(shared) == len(start) and all(map(torch.equal, shared, start))


class ExpertTrajectories:
    """The experts of a folder, memory-mapped: sampling reads two snapshots, not the file."""

    def __init__(self, folder):
        self.folder = Path(folder)
        numbers = [
            sorted(
                int(match[1])
                for path in self.folder.glob(f"{tower}_replay_buffer_*.pt")
                if (match := re.fullmatch(rf"{tower}_replay_buffer_(\d+)\.pt", path.name))
            )
            for tower in TOWERS
        ]
        complete = sorted(set(numbers[0]) & set(numbers[1]))
        if not complete:
            raise UserError(
                f"{self.folder} holds no experts ({{img,txt}}_replay_buffer_n.pt): train them with "
                "buffer.py, "
                "with the same --buffer_path, data set and encoders."
            )
        self._experts = []  # (img snapshots, txt snapshots, where they come from)
        for n in complete:
            files = expert_files(self.folder, n)
            towers = [self._read(path) for path in files]
            if len(towers[0]) != len(towers[1]):
                raise UserError(
                    f"{files.img} holds {len(towers[0])} experts but {files.txt} holds {len(towers[1])}: "
                    "they are not of one run."
                )
            self._experts += [
                (img, txt, f"{files.img}, expert {i}") for i, (img, txt) in enumerate(zip(*towers))
            ]
        for img, txt, source in self._experts:
            if len(img) != len(txt):
                raise UserError(f"{source} has {len(img)} image snapshots but {len(txt)} text snapshots.")

    def _load(self, path):
        """The file, mapped into memory. Its checksums are looked at once: a mark remembers the file that they
        were right for.
        """
        mark, stat = self.folder / ".locks" / f"{path.name}.verified", path.stat()
        identity = f"{stat.st_size} {stat.st_mtime_ns}"
        try:
            verified = mark.read_text() == identity
        except (OSError, UnicodeDecodeError):
            verified = False
        tensors = load_tensors(path, mmap=True, verify=not verified)
        if not verified:
            with suppress(UserError):  # others' experts may lie in a folder that only they can write to
                write_text(mark, identity)
        return tensors

    def _read(self, path):
        experts = self._load(path)
        if (
            not isinstance(experts, list)
            or not experts
            or not all(isinstance(expert, list) and expert for expert in experts)
        ):
            raise UserError(f"{path} is not a list of experts, each a list of snapshots.")
        for expert in experts:
            if expert[0] == [] and path.name.startswith("img"):
                expert[0] = self._load(self.folder / SHARED_START)
            if not all(
                isinstance(shot, (list, tuple)) and shot and all(map(_is_weight, shot)) for shot in expert
            ):
                raise UserError(
                    f"{path} holds a snapshot that is not a list of tensors of floating point numbers."
                )
        return experts

    def __len__(self):
        return len(self._experts)

    def require_fits(self, model, last_start_epoch, expert_epochs):
        """UserError unless every snapshot has the model's shapes and every expert reaches the last target
        epoch.
        """
        wanted = [[tuple(parameter.shape) for _, parameter in tower] for tower in tower_parameters(model)]
        for img, txt, source in self._experts:
            if len(img) <= last_start_epoch + expert_epochs:
                raise UserError(
                    f"{source} has {len(img) - 1} epochs, but --max_start_epoch and --expert_epochs ask for "
                    f"epoch {last_start_epoch + expert_epochs}."
                )
            for tower, shots, shapes in zip(TOWERS, (img, txt), wanted):
                if any([tuple(value.shape) for value in shot] != shapes for shot in shots):
                    raise UserError(
                        f"{source}: the {tower} parameters do not have the shapes of this run's model; "
                        "are --image_encoder, --text_encoder and --image_trainable those of the experts?"
                    )

    def epochs(self):
        """The last epoch that every expert has a snapshot of."""
        return min(len(img) for img, *_ in self._experts) - 1

    def snapshots(self, expert):
        """An expert's snapshots, each a list of tensors, as `Weights` of two lists."""
        return Weights(*self._experts[expert][:2])

    def last(self, expert):
        """An expert's last snapshot: flat `Weights` on the CPU."""
        return Weights(*(flatten(tower[-1]).float() for tower in self.snapshots(expert)))

    def pair(self, expert, starts, expert_epochs, out=None):
        """An expert's weights at `starts`, an epoch per tower, and `expert_epochs` later: two flat `Weights`
        on the CPU. An earlier pair given as `out` is overwritten, which spares its memory.
        """
        ends = Weights(*(epoch + expert_epochs for epoch in starts))
        shots = [
            [self._snapshot(expert, tower, epoch) for tower, epoch in enumerate(epochs)]
            for epochs in (starts, ends)
        ]
        return tuple(
            Weights(*(flatten(shot, out=vector).float() for shot, vector in zip(towers, kept)))
            for towers, kept in zip(shots, out or [(None, None)] * 2)
        )

    def _snapshot(self, expert, tower, epoch):
        """The tensors of one tower at an epoch, about to be read."""
        shot = self.snapshots(expert)[tower][epoch]
        _read_ahead(shot)
        return shot


def _is_weight(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _read_ahead(snapshot):
    """Tell Linux that of a memory-mapped file exactly this snapshot is about to be read."""
    if not sys.platform.startswith("linux"):
        return
    begin = min(value.data_ptr() for value in snapshot) // mmap.PAGESIZE * mmap.PAGESIZE
    end = max(value.data_ptr() + value.nbytes for value in snapshot)
    madvise = ctypes.CDLL(None).madvise  # advice only: an error changes nothing
    madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_RANDOM)
    piece = 1 << 20  # the kernel reads no more than its window at one call
    for address in range(begin, end, piece):
        madvise(ctypes.c_void_p(address), ctypes.c_size_t(min(piece, end - address)), mmap.MADV_WILLNEED)

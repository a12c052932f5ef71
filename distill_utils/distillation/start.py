"""The synthetic set that a run begins with: real pairs, noise, another run's set, or its own where it was
stopped.
"""

from pathlib import Path

import torch

from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_indices
from distill_utils.runs.tensors import load_tensors
from distill_utils.synthetic.set import SyntheticSet, real_set
from networks.weights import load_flat


def initial_set(task, pairs, similarity, *, pix_init, txt_init, lrs, meta, generator):
    """The real train pairs `pairs`, or standard normal noise in place of their images or texts; noise texts
    have no source caption.
    """
    synthetic = real_set(task, pairs, meta, similarity, lr_img=lrs[0], lr_txt=lrs[1])
    with torch.no_grad():
        if pix_init == "noise":
            synthetic.images.normal_(generator=generator)
        if txt_init == "noise":
            synthetic.texts.normal_(generator=generator)
            synthetic.meta["source_captions"] = [None] * len(pairs)
    return synthetic


def other_start(path):
    """(state or None, SyntheticSet) of --resume_from: a run's folder, its state.pt, or a distilled_*.pt.

    The state begins a new run here: it is evaluated first, and step sizes are those of the flags.
    """
    path = Path(path)
    path = path / "state.pt" if path.is_dir() else path
    saved = load_tensors(path)
    if not isinstance(saved, dict) or "momentum" not in saved:
        return None, SyntheticSet.from_saved(saved, path)
    begun_here = {
        "first_step": saved.get("step"),
        "unlogged": {},
        "restores": 0,
        "evaluations": {},
        "tested": None,
    }
    return saved | begun_here, SyntheticSet.from_saved(saved.get("set"), path)


@torch.no_grad()
def expert_similarity(model, weights, synthetic):
    """S [N, N] by an expert: cosines of image i and text j over those of the pairs themselves, in [0, 1].

    The ablation of the paper in which the similarity is computed instead of learned; 1 on the diagonal.
    """
    images, texts = load_flat(model, weights).eval()(synthetic.images, synthetic.texts)
    cosines = images @ texts.T
    own = cosines.diagonal().clamp(min=1e-3)
    return (cosines / (own[:, None] * own[None, :]).sqrt()).clamp(0, 1).fill_diagonal_(1)


def initial_pairs(path, task, n):
    """The first n of the train pairs that a file names, as a coreset's indices.npy does, in its order."""
    pairs = task.positions(torch.from_numpy(read_indices(path)), path)
    if len(pairs) < n:
        raise UserError(f"--init_indices {path} names {len(pairs)} pairs, fewer than --num_queries {n}.")
    return pairs[:n]

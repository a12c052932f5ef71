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


def other_start(path, sim_type, alpha):
    """(state or None, SyntheticSet) of --resume_from: a run's folder, its state.pt, or a distilled_*.pt.

    The state begins a new run here: it is evaluated first, and step sizes are those of the flags. sim_type,
    alpha: of S, where a file of the reference does not say.
    """
    path = Path(path)
    path = path / "state.pt" if path.is_dir() else path
    saved = load_tensors(path)
    if not isinstance(saved, dict) or "momentum" not in saved:
        saved = _low_rank(saved, alpha, path) if sim_type == "lowrank" else saved
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
def _low_rank(saved, alpha, path):
    """A file of the reference, which has no `meta`, as one whose S goes on as diag(w) + alpha / r L R^T, by
    its `similarity_params` [w, L, R]; any other file as it is.
    """
    factors = saved.get("similarity_params") if isinstance(saved, dict) and "meta" not in saved else None
    if not isinstance(factors, (list, tuple)) or [getattr(f, "ndim", None) for f in factors] != [1, 2, 2]:
        return saved
    matrix, (weights, left, right) = saved.get("similarity_mat"), factors
    fits = left.shape == right.shape and left.numel() and len(left) == len(weights)
    if not fits or getattr(matrix, "shape", None) != (len(left),) * 2:
        raise UserError(
            f"{path}: its similarity_params are not the factors w, L and R of its similarity_mat."
        )
    found = weights.diag() + alpha / left.shape[1] * (left @ right.T)
    if not torch.allclose(matrix, found, 1e-3, 1e-4):
        raise UserError(f"{path}: its similarity_mat is not what its factors give with --alpha {alpha}.")
    return saved | {"meta": {"sim_type": "lowrank", "sim_rank": left.shape[1], "alpha": float(alpha)}}


# What a set is, by the names of its `meta` -> the flag that says the same.
_FLAGS = {
    "num_queries": "--num_queries",
    "sim_type": "--sim_type",
    "sim_rank": "--sim_rank",
    "alpha": "--alpha",
    "loss": "--loss_type",
    "temperature": "--temperature",
    "dataset": "--dataset",
    "image_encoder": "--image_encoder",
    "image_pretrained": "--image_pretrained",
    "image_trainable": "--image_trainable",
    "freeze_bn": "--freeze_bn",
    "train_subset": "--train_subset",
}


def require_same_set(synthetic, wanted, path):
    """UserError where a flag contradicts what the set of `path` is; what it does not say of itself it is from
    now on as `wanted` says ({name of _FLAGS or of `meta`: value}).
    """
    kind = synthetic.similarity.kind
    own = synthetic.meta | {"num_queries": len(synthetic), "sim_type": {"fixed": "expert"}.get(kind, kind)}
    for key, flag in _FLAGS.items():
        if key in ("sim_rank", "alpha") and kind != "lowrank":
            continue
        if key in own and own[key] != wanted[key]:
            raise UserError(f"{path} is a set of {flag} {own[key]}, not {wanted[key]}.")
    about = {key: value for key, value in wanted.items() if key not in list(_FLAGS)[:4]}
    synthetic.meta = about | synthetic.meta


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

"""The synthetic set, images, text embeddings, similarity and learned rates, in memory and on disk.

images, texts, similarity = SyntheticSet.load("logged_files/toy/quickstart").tensors()
loader = SyntheticSet.load("logged_files/toy/quickstart").loader(batch_size=128)
"""

import hashlib

import torch
from torch import nn
from torch.utils.data import DataLoader

from data.transforms import CLIP_MEAN, CLIP_STD, denormalise
from distill_utils.runs.errors import UserError
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.synthetic.checkpoint import find_checkpoint
from distill_utils.synthetic.similarity import (
    FixedSimilarity,
    FullSimilarity,
    IdentitySimilarity,
    build_similarity,
)


class SyntheticSet(nn.Module):
    """N pairs: `images` [N, 3, H, W] normalised, `texts` [N, T], `similarity()` [N, N], `lr_img`, `lr_txt`.

    A coreset is a synthetic set of real pairs whose similarity is the identity. `meta` says what the set was
    made with.
    """

    def __init__(self, images, texts, similarity, lr_img=0.1, lr_txt=0.1, meta=None):
        super().__init__()
        n = len(images)
        if images.dim() != 4 or texts.dim() != 2 or len(texts) != n or similarity().shape != (n, n):
            raise UserError(
                f"A synthetic set needs images [N, 3, H, W], texts [N, T] and a similarity [N, N], not "
                f"{list(images.shape)}, {list(texts.shape)} and {list(similarity().shape)}."
            )
        self.images = nn.Parameter(images)
        self.texts = nn.Parameter(texts)
        self.similarity = similarity
        self.lr_img = nn.Parameter(torch.as_tensor(lr_img, dtype=texts.dtype).clone())
        self.lr_txt = nn.Parameter(torch.as_tensor(lr_txt, dtype=texts.dtype).clone())
        self.meta = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD)} | (meta or {})

    def __len__(self):
        return len(self.images)

    def minibatch(self, ids, images=None):
        """Images [B, 3, H, W], texts [B, T] and the similarity block [B, B] of the pairs `ids` (LongTensor
        [B]); images: what stands for them, such as a frozen encoder's features [N, W].
        """
        return (self.images if images is None else images)[ids], self.texts[ids], self.similarity(ids)

    @torch.no_grad()
    def tensors(self):
        """Images, texts and S, detached."""
        return self.images.detach(), self.texts.detach(), self.similarity().detach().clone()

    def storage(self):
        """The set's numbers in plain image-text pairs: N and what the similarity and the two rates add.

        A low-rank similarity adds 1 + 2 r numbers a pair: the published sets of N - 1 pairs are no larger
        than N plain ones.
        """
        pairs = self.images.numel() + self.texts.numel()
        similarity = sum(value.numel() for value in self.similarity.state_dict().values())
        return (pairs + similarity + 2) * len(self) / pairs

    @torch.no_grad()
    def digest(self):
        """Which set this is, in 16 hexadecimal digits of a sha256 over images, texts, similarity and rates.

        Of the similarity what it is made of, for the last bits of a product depend on the machine.
        """
        similarity = self.similarity
        made_of = [similarity.kind, str(getattr(similarity, "alpha", None))]
        digest = hashlib.sha256(" ".join(made_of).encode())
        learned = (self.images, self.texts, *similarity.state_dict().values(), self.lr_img, self.lr_txt)
        for tensor in learned:
            array = tensor.cpu().contiguous().numpy()
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()[:16]

    def pixels(self):
        """The images in [0, 1], [N, 3, H, W]."""
        return denormalise(self.images.detach(), self.meta["mean"], self.meta["std"])

    def loader(self, batch_size, shuffle=True, generator=None, images=None):
        """A DataLoader of (images, texts, similarity block): every pair once an epoch; images: see
        `minibatch`.
        """

        def collate(ids):
            with torch.no_grad():
                return self.minibatch(torch.tensor(ids, device=self.images.device), images)

        return DataLoader(
            range(len(self)), batch_size, shuffle=shuffle, generator=generator, collate_fn=collate
        )

    def save(self, path):
        """Write the set atomically."""
        save_tensors(path, self.saved())

    @torch.no_grad()
    def saved(self):
        """What the file holds: the reference's keys, plus `meta`; all on the CPU."""
        similarity = self.similarity
        kind = {"sim_type": similarity.kind}
        if similarity.kind == "lowrank":
            kind |= {"sim_rank": similarity.rank, "alpha": similarity.alpha}
        return {
            "image": self.images.detach().cpu(),
            "text": self.texts.detach().cpu(),
            "similarity_params": [parameter.detach().cpu() for parameter in similarity.parameters()],
            "similarity_mat": similarity().detach().cpu(),
            "syn_lr_img": self.lr_img.detach().cpu(),
            "syn_lr_txt": self.lr_txt.detach().cpu(),
            "meta": self.meta | kind,
        }

    @classmethod
    def load(cls, path):
        """A set of this project, or of the reference: a dict without `meta`, whose S is then a full matrix.

        path: a file, or a run's folder, whose set chosen on val it is. UserError if there is none.
        """
        file = find_checkpoint(path)
        return cls.from_saved(load_tensors(file), file)

    @classmethod
    def from_saved(cls, saved, path):
        """The set that `saved` describes; `path` says in errors where it comes from."""
        tensors = saved if isinstance(saved, dict) else {}
        for key, dimensions in (("image", 4), ("text", 2), ("similarity_mat", 2)):
            value = tensors.get(key)
            if (
                not isinstance(value, torch.Tensor)
                or not value.is_floating_point()
                or value.dim() != dimensions
                or not value.numel()
            ):
                raise UserError(
                    f"{path} is not a synthetic set: {key!r} must be a tensor of floats with {dimensions} "
                    "dimensions."
                )
        for key in ("syn_lr_img", "syn_lr_txt"):
            if not isinstance(tensors.get(key), torch.Tensor) or tensors[key].numel() != 1:
                raise UserError(f"{path} is not a synthetic set: {key!r} must be a tensor of one number.")
        meta = saved.get("meta") or {}
        if (
            not isinstance(meta, dict)
            or saved["similarity_mat"].shape != (len(saved["text"]),) * 2
            or saved["image"].shape[1] != 3
        ):
            raise UserError(
                f"{path} is not a synthetic set: its images, texts and similarity are not of one number of "
                "pairs, or its meta no dict."
            )
        for key in ("mean", "std"):
            values = meta.get(key, [0.5] * 3)
            is_list = isinstance(values, (list, tuple)) and len(values) == 3
            if not is_list or not all(map(_is_positive, values)):
                what = f"{key!r} in its meta must be three numbers above 0"
                raise UserError(f"{path} is not a synthetic set: {what}.")
        return cls(
            saved["image"].float(),
            saved["text"].float(),
            _load_similarity(saved, meta, path),
            saved["syn_lr_img"].float().reshape(()),
            saved["syn_lr_txt"].float().reshape(()),
            meta,
        )


def _is_positive(value):
    return isinstance(value, (int, float)) and 0 < value < 1e6


@torch.no_grad()
def _load_similarity(saved, meta, path):
    matrix = saved["similarity_mat"].float()
    if "sim_type" not in meta:
        return FullSimilarity(len(matrix), matrix)
    if meta["sim_type"] == "fixed":
        return FixedSimilarity(matrix)
    parameters, rank, alpha = saved.get("similarity_params"), meta.get("sim_rank", 1), meta.get("alpha", 1.0)
    foreign = UserError(
        f"{path}: similarity_params do not belong to a {meta['sim_type']} similarity of {len(matrix)} pairs."
    )
    if not isinstance(parameters, (list, tuple)) or not all(
        isinstance(value, torch.Tensor) for value in parameters
    ):
        raise foreign
    if (
        meta["sim_type"] == "lowrank"
    ):  # its rank decides how much memory is asked for: it must be that of the tensors in the file
        if len(parameters) != 3 or parameters[1].shape != (len(matrix), rank) or not isinstance(alpha, float):
            raise foreign
    similarity = build_similarity(meta["sim_type"], len(matrix), rank=rank, alpha=alpha)
    if [value.shape for value in parameters] != [own.shape for own in similarity.parameters()]:
        raise foreign
    for own, value in zip(similarity.parameters(), parameters):
        own.copy_(value)
    return similarity


def real_set(task, pairs, meta, similarity=None, **learned):
    """A synthetic set of the real train pairs `pairs` (LongTensor [n]); S = I unless given."""
    images, texts, captions = task.real_pairs(pairs)
    similarity = similarity or IdentitySimilarity(len(pairs))
    return SyntheticSet(images, texts, similarity, meta=meta | {"source_captions": captions}, **learned)

"""Features of all train pairs by an expert's two towers."""

from typing import NamedTuple

import torch

from distill_utils.experts.folder import experts_folder, require_same_experts
from distill_utils.experts.forgetting import read_forgetting
from distill_utils.experts.trajectories import ExpertTrajectories
from distill_utils.runs.errors import UserError
from distill_utils.selection.coresets import select
from distill_utils.task.from_flags import made_with
from networks.weights import load_flat


class PairFeatures(NamedTuple):
    """Unit features: images [I, D], texts [P, D], and image_index [P], the image of each pair."""

    images: torch.Tensor
    texts: torch.Tensor
    image_index: torch.Tensor

    def mean(self):
        """The mean joint embedding, as its image and text halves."""
        weights = torch.bincount(self.image_index, minlength=len(self.images)).to(self.images)
        return torch.stack([weights @ self.images / len(self.texts), self.texts.mean(dim=0)]) / 2**0.5

    def row(self, pair):
        """Of one pair, as its halves [2, D]."""
        return torch.stack([self.images[self.image_index[pair]], self.texts[pair]]) / 2**0.5

    def dot(self, halves):
        """Every pair's joint embedding times one given as its halves: [P]."""
        return ((self.images @ halves[0])[self.image_index] + self.texts @ halves[1]) / 2**0.5

    def joint(self):
        """[P, 2 D]."""
        return torch.cat([self.images[self.image_index], self.texts], dim=1) / 2**0.5

    def clip_scores(self):
        """The cosine of each pair's image and text, [P]."""
        return torch.cat(
            [
                (self.images[index] * texts).sum(dim=1)
                for index, texts in zip(self.image_index.split(8192), self.texts.split(8192))
            ]
        )


@torch.no_grad()
def expert_features(model, task, device):
    """PairFeatures of all train pairs by a model."""
    model = model.to(device).eval()
    images = torch.cat([model.encode_images(batch) for batch in task.train_images(256, device)])
    texts = torch.cat([model.encode_texts(batch.to(device)) for batch in task.train_texts.split(8192)])
    return PairFeatures(images, texts, task.train.image_index.to(device))


def open_features(args, task, make_model, device, expert=0):
    """PairFeatures by the last snapshot of one of the experts that the flags describe."""
    folder = experts_folder(args)
    require_same_experts(folder, made_with(args, task))
    experts, model = ExpertTrajectories(folder), make_model()
    if expert >= len(experts):
        raise UserError(
            f"--expert {expert} does not exist: {folder} holds {len(experts)} experts, counted from 0."
        )
    experts.require_fits(model, 0, 0)
    return expert_features(load_flat(model, experts.last(expert)), task, device)


def chosen_pairs(method, args, task, model_maker, device, generator, *, expert=0, **how):
    """LongTensor of the --num_queries train pairs that a method of CORESETS chooses, with features and
    forgetting events of the experts that the flags describe.

    model_maker() -> make_model, called where a method asks for features alone: it may look at all images.
    how: see `select`.
    """
    return select(
        method,
        task,
        args.num_queries,
        generator,
        features=lambda: open_features(args, task, model_maker(), device, expert),
        forgetting=lambda: read_forgetting(experts_folder(args), len(task.train)),
        **how,
    )

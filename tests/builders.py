"""Small networks, sets and tasks that the tests share."""

import torch
from torch import nn

from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.task.retrieval_task import Gallery
from distill_utils.training.losses import identity_target
from networks.two_tower import ProjectionHead, TwoTower


class TinyEncoder(nn.Module):
    """Two smooth convolutions and a pool, with a frozen scale: enough to be an image tower, in any dtype."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2)
        self.second = nn.Conv2d(4, width, 2)
        self.frozen = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, images):
        return self.second(self.first(images).tanh()).tanh().mean(dim=(2, 3)) * self.frozen


def tiny_model(width=5, text_dim=6, dropout=0.5, dtype=torch.float64, seed=0):
    """seed: of its weights; None: as torch's global generator stands."""
    if seed is not None:
        torch.manual_seed(seed)
    return TwoTower(TinyEncoder(width), ProjectionHead(text_dim, width, dropout)).to(dtype)


def tiny_set(pairs=7, text_dim=6, lrs=(0.25, 0.0625), seed=0):
    """A synthetic set in float64 whose similarity is not the identity."""
    torch.manual_seed(seed)
    similarity = build_similarity("lowrank", pairs, rank=2, alpha=1.5)
    synthetic = SyntheticSet(torch.randn(pairs, 3, 9, 8), torch.randn(pairs, text_dim), similarity, *lrs)
    with torch.no_grad():
        for parameter in similarity.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return synthetic.double()


class TinyTask:
    """Random pairs in float64, and what students and experts ask of a task."""

    def __init__(self, pairs=11, text_dim=6, seed=0):
        numbers = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=numbers, dtype=torch.float64)

        self.train, self._images, self._texts = range(pairs), draw(pairs, 3, 9, 8), draw(pairs, text_dim)
        index = torch.arange(8).repeat_interleave(2)
        captions = ["a word"] * len(index)
        self.galleries = {
            split: Gallery(draw(8, 3, 9, 8), draw(len(index), text_dim), captions, index)
            for split in ("val", "test")
        }

    def train_batches(self, batch_size, generator, device):
        for pairs in torch.randperm(len(self.train), generator=generator).split(batch_size):
            yield self._images[pairs], self._texts[pairs], identity_target(len(pairs), self._texts), pairs

    def seen(self, images):
        return images

    def num_batches(self, batch_size):
        return -(-len(self.train) // batch_size)


def trained_by_hand(model, batches, loss_fn, temperature, lrs, velocity=None, momentum=0.0, decay=0.0):
    """One epoch of SGD with a rate per tower, its update written out; the mean loss and the velocities."""
    towers = [
        [p for p in t.parameters() if p.requires_grad] for t in (model.image_encoder, model.text_projection)
    ]
    parameters = sum(towers, [])
    rates = [lrs[0]] * len(towers[0]) + [lrs[1]] * len(towers[1])
    velocity = velocity or [torch.zeros_like(p) for p in parameters]
    losses = []
    for images, texts, similarity, *_ in batches:
        image_features, text_features = model.encode_images(images), model.encode_texts(texts)
        loss = loss_fn(image_features @ text_features.T / temperature, similarity)
        slopes = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, v, slope, rate in zip(parameters, velocity, slopes, rates):
                v.mul_(momentum).add_(slope + decay * p)
                p -= rate * v
        losses.append(loss.item())
    return sum(losses) / len(losses), velocity

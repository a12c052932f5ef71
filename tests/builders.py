"""Small networks that the tests share."""

import torch
from torch import nn

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
    torch.manual_seed(seed)
    return TwoTower(TinyEncoder(width), ProjectionHead(text_dim, width, dropout)).to(dtype)

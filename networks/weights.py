"""The trained parameters of a TwoTower, per tower: as names, as copies, as one flat vector."""

from typing import NamedTuple

import torch

TOWERS = ("img", "txt")


class Weights(NamedTuple):
    """Something per tower; mostly its parameters as one flat vector."""

    img: torch.Tensor
    txt: torch.Tensor


def tower_parameters(model):
    """Per tower, the (name in the model, parameter) pairs that training moves, in parameter order."""
    return Weights(
        *(
            [
                (f"{tower}.{name}", parameter)
                for name, parameter in getattr(model, tower).named_parameters()
                if parameter.requires_grad
            ]
            for tower in ("image_encoder", "text_projection")
        )
    )


def snapshot(model):
    """Per tower, a list of copies of its parameters on the CPU (a copy there too: `.cpu()` alone would alias
    them).
    """
    return Weights(
        *(
            [parameter.detach().to("cpu", copy=True) for _, parameter in tower]
            for tower in tower_parameters(model)
        )
    )


def flatten(tensors, out=None):
    """One vector of a tower's parameters, written to `out` where given."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)


@torch.no_grad()
def load_flat(model, weights):
    """The model with its parameters set to the flat vectors `weights`."""
    for tower, vector in zip(tower_parameters(model), weights):
        pieces = vector.split([parameter.numel() for _, parameter in tower])
        for (_, parameter), piece in zip(tower, pieces):
            parameter.copy_(piece.view_as(parameter))
    return model


def snapshot_bytes(model, dtype):
    """Weights: the bytes of one snapshot of each tower."""
    return Weights(
        *(
            sum(parameter.numel() for _, parameter in tower) * dtype.itemsize
            for tower in tower_parameters(model)
        )
    )


def describe_towers(model):
    """Names and shapes of the parameters, for meta.yaml."""
    return {
        tower: [[name, list(parameter.shape)] for name, parameter in pairs]
        for tower, pairs in zip(TOWERS, tower_parameters(model))
    }

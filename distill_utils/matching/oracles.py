"""Slow, obvious twins of the matching gradient: what tests compare with and benchmarks race against.

They fill `.grad` of every parameter of the synthetic set, like `matching.matching_step`, and draw the same
dropout masks from `seed`.
"""

import torch
from torch.func import functional_call

from distill_utils.matching.gradient import MatchingLoss
from distill_utils.training.losses import pair_logits
from networks.weights import Weights, tower_parameters


def _loss(model, theta, synthetic, ids, loss_fn, temperature, seed, blend=None):
    """l(theta; z), differentiable in the flat vectors and in the synthetic set. blend: (weight, permutation)
    of a frozen encoder's features and of the texts.
    """
    parameters = {}
    for vector, tower in zip(theta, tower_parameters(model)):
        pieces = vector.split([parameter.numel() for _, parameter in tower])
        parameters |= {name: piece.view_as(parameter) for (name, parameter), piece in zip(tower, pieces)}
    images, texts = synthetic.images[ids], synthetic.texts[ids]
    if blend:
        images, texts = (_mixed(values, *blend) for values in (model.frozen_encoder(images), texts))
    device = synthetic.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        features = functional_call(model, parameters, (images, texts))
    return loss_fn(pair_logits(*features, temperature), synthetic.similarity()[ids][:, ids])


def _mixed(values, weight, permutation):
    """Row by row, each with the row that the permutation names."""
    return torch.stack(
        [weight * values[i] + (1 - weight) * values[other] for i, other in enumerate(permutation.tolist())]
    )


def _matching_loss(final, start, target, merge_towers):
    distances = [(vector - goal).pow(2).sum() for vector, goal in zip(final, target)]
    scales = [(vector - goal).pow(2).sum() for vector, goal in zip(start, target)]
    ratios = [distance / scale for distance, scale in zip(distances, scales)]
    return MatchingLoss(sum(distances) / sum(scales) if merge_towers else sum(ratios), *ratios)


def unroll(
    model,
    synthetic,
    start,
    target,
    minibatches,
    loss_fn,
    *,
    gradient="full",
    merge_towers=False,
    temperature=0.07,
    seed=0,
    blends=(),
):
    """Autograd through one graph of the whole inner loop, in the order of the definition (MTT).

    For "truncated", theta_t is held constant inside g_t while theta_T = theta_0 - sum eta g_t still depends
    on every z_t.
    """
    theta = [vector.clone().requires_grad_() for vector in start]
    for t, ids in enumerate(minibatches):
        at = theta if gradient == "full" else [vector.detach().requires_grad_() for vector in theta]
        gradients = torch.autograd.grad(
            _loss(model, at, synthetic, ids, loss_fn, temperature, seed + t, blends[t] if blends else None),
            at,
            create_graph=True,
        )
        theta = [
            vector - lr * g for vector, lr, g in zip(theta, (synthetic.lr_img, synthetic.lr_txt), gradients)
        ]
    loss = _matching_loss(theta, start, target, merge_towers)
    parameters = list(synthetic.parameters())
    for parameter, value in zip(
        parameters, torch.autograd.grad(loss.grand, parameters, materialize_grads=True)
    ):
        parameter.grad = value
    return MatchingLoss(*(value.detach() for value in loss))


def reference(
    model, synthetic, start, target, minibatches, loss_fn, *, merge_towers=False, temperature=0.07, seed=0
):
    """The published code's two passes (TESLA, LoRS), as described: truncated, reverse over reverse.

    The first pass asks for a graph at every inner step and drops it; the second builds each step's graph
    again and takes the product of the gap theta_T - theta* with the step's gradient back to the minibatch.
    """
    lrs = (synthetic.lr_img, synthetic.lr_txt)
    path, slopes = [start], []
    for t, ids in enumerate(minibatches):
        theta = [vector.detach().requires_grad_() for vector in path[-1]]
        gradients = torch.autograd.grad(
            _loss(model, theta, synthetic, ids, loss_fn, temperature, seed + t), theta, create_graph=True
        )
        slopes.append([g.detach() for g in gradients])
        path.append(
            Weights(*(vector.detach() - lr.detach() * g for vector, lr, g in zip(theta, lrs, slopes[-1])))
        )
        del gradients
    final = [vector.detach().requires_grad_() for vector in path[-1]]
    loss = _matching_loss(final, start, target, merge_towers)
    gaps = torch.autograd.grad(loss.grand, final)
    for parameter in synthetic.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for lr, gap, tower_slopes in zip(lrs, gaps, zip(*slopes)):
        lr.grad -= gap @ sum(tower_slopes)
    learned = [parameter for parameter in synthetic.parameters() if all(parameter is not lr for lr in lrs)]
    for t, ids in enumerate(minibatches):
        theta = [vector.detach().requires_grad_() for vector in path[t]]
        gradients = torch.autograd.grad(
            _loss(model, theta, synthetic, ids, loss_fn, temperature, seed + t), theta, create_graph=True
        )
        product = -sum(lr.detach() * (g @ gap) for lr, g, gap in zip(lrs, gradients, gaps))
        for parameter, value in zip(learned, torch.autograd.grad(product, learned, materialize_grads=True)):
            parameter.grad += value
    return MatchingLoss(*(value.detach() for value in loss))

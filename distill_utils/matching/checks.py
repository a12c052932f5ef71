"""What matching refuses, and how well one gradient agrees with another."""

import torch

from distill_utils.runs.errors import UserError
from networks.image_encoders import keeps_statistics


def require_no_running_statistics(model):
    """UserError for a model whose training changes more than its weights; frozen ones, in eval mode, keep
    their statistics.
    """
    for name, module in model.named_modules():
        if module.training and keeps_statistics(module):
            raise UserError(
                f"{name} ({type(module).__name__}) keeps running statistics, which are no function of "
                "the weights: trajectory matching needs --freeze_bn, an encoder without BatchNorm, such as "
                "nfnet or resnet18_gn, or --image_trainable false."
            )


def require_combination(second_order, *, precision, compile, grad_checkpointing):
    """UserError for options of Matcher that cannot work together.

    What precision may touch: products of 10 bits (tf32) or 7 (bf16) serve students, experts and the exact
    second derivatives, whose error stays of that size; a difference of gradients divides it by a small step.
    So `finite` computes in fp32 under tf32, where that is a switch, and refuses bf16.
    """
    if compile and second_order != "finite":
        raise UserError(
            f"--compile compiles first-order gradients only: "
            f"it goes with --second_order finite, not {second_order}."
        )
    if precision == "bf16" and second_order == "finite":
        raise UserError(
            "--precision bf16 rounds away the small steps of --second_order finite: use fp32, tf32 (which "
            "matching then leaves to the students), or forward or reverse."
        )
    if grad_checkpointing and second_order != "finite":
        raise UserError(
            f"--grad_checkpointing recomputes first-order graphs only: "
            f"it goes with --second_order finite, not {second_order}."
        )


def gradient_agreement(found, exact):
    """{"cosine", "error"} of a gradient with the exact one, in float64; the error is relative to the exact
    one's norm, 0 if both are 0.
    """
    found, exact = found.detach().double().flatten(), exact.detach().double().flatten().to(found.device)
    size = exact.norm()
    if size == 0:
        return {"cosine": float(found.norm() == 0), "error": float(found.norm())}
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(found, exact, dim=0)),
        "error": float((found - exact).norm() / size),
    }

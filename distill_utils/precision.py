"""The arithmetic of a run: fp32, tf32 (CUDA's matrix units) or bf16 (autocast)."""

import torch

from distill_utils.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16")


def set_precision(name, device):
    """Make float32 products exact, or of 10 bits for tf32, in the whole process. UserError for tf32 off CUDA."""
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32 needs a CUDA GPU, but the run is on {device}: use fp32 or bf16.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


def autocast(name, device):
    """The context of a model's forward pass: bfloat16 products for bf16, nothing otherwise."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=name == "bf16")

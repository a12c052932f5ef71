"""Where a run computes and how precisely: the device, fp32, tf32 or bf16, and how much memory is in use."""

import os
from pathlib import Path

import torch

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.processes import local_rank


def resolve_device(name):
    """`auto` (under torchrun the GPU that it means for this process), `cpu`, or any device that torch names and
    that is there.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda" if local_rank() is None else f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {first_line(error)}") from None
    return device


def describe_device(device):
    """What the device is: the GPU's name, or the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({os.cpu_count()} cores)"


def set_precision(name, device):
    """Make float32 products exact, or of 10 bits for tf32, in the whole process. UserError for tf32 off CUDA."""
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32 needs a CUDA GPU, but the run is on {device}: use fp32 or bf16.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


def autocast(name, device):
    """The context of a model's forward pass: bfloat16 products for bf16, nothing otherwise."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=name == "bf16")


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # Linux: the peak starts anew from what is resident now
        except OSError:
            pass


def peak_mb(device):
    """MB at most in use since `reset_peak`: of the GPU, or resident in this process (None where the system
    does not say).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

"""Where a run computes and how precisely: the device, fp32, tf32 or bf16, and how much memory is in use."""

import os
from contextlib import contextmanager
from pathlib import Path

import torch

from distill_utils.runs.errors import UserError, first_line
from distill_utils.runs.processes import local_rank


def resolve_device(name):
    """`auto` (under torchrun the GPU that it means for this process), `cpu`, or any device that torch names
    and that is there.

    `auto` is the CPU only where no GPU was asked for: UserError where one that LORS_GPU (the sh files' first
    argument) or CUDA_VISIBLE_DEVICES names cannot be used.
    """
    if name == "auto":
        _require_what_was_asked_for()
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = "cuda" if local_rank() is None else f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {first_line(error)}") from None
    return device


def _require_what_was_asked_for():
    asked = os.environ.get("LORS_GPU", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    wanted = [number for number in asked.split(",") if number.strip() and number.strip() != "-1"]
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < len(wanted):
        what = f"{there} of them can be used" if there else "none can be used"
        raise UserError(
            f"GPU {asked} was asked for, but {what} on this machine: name GPUs that nvidia-smi lists, or "
            "`cpu` (--device cpu)."
        )


def describe_device(device):
    """What the device is: the GPU's name, or the number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({os.cpu_count()} cores)"


def set_precision(name, device):
    """Make float32 products exact, or of 10 bits for tf32, in this process. UserError for tf32 off CUDA."""
    if name == "tf32" and device.type != "cuda":
        raise UserError(f"--precision tf32 needs a CUDA GPU, but the run is on {device}: use fp32 or bf16.")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


@contextmanager
def exact_products():
    """A block whose float32 products are exact, whatever the precision of the run."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    was = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, was):
            backend.allow_tf32 = allowed


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
            # Linux: the peak starts anew from what is resident now
            Path("/proc/self/clear_refs").write_text("5")
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

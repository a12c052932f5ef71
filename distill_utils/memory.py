"""How much memory is in use, on a GPU or by this process."""

from pathlib import Path

import torch


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from what is resident now
        except OSError:
            pass


def peak_mb(device):
    """MB at most in use since `reset_peak`: of the GPU, or resident in this process (None where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

"""Several processes of one job, as torch.distributed joins them."""

import atexit
import json
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from distill_utils.runs.errors import UserError
from distill_utils.runs.world import World

_TIMEOUT = timedelta(minutes=30)  # a rank that dies is noticed at once; this is for one that hangs


class Group(World):
    """This process among `size` that torchrun has started."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def broadcast(self, tensor, part):
        with _together():
            dist.broadcast(tensor, src=part % self.size)

    def add_up(self, tensor):
        with _together():
            dist.all_reduce(tensor)
        return tensor

    def share(self, value, part, device):
        owner = self.owns(part)
        text = torch.tensor(
            list(json.dumps(value).encode() if owner else b""), dtype=torch.uint8, device=device
        )
        length = torch.tensor([len(text)], device=device)
        self.broadcast(length, part)
        if not owner:
            text = torch.empty(int(length), dtype=torch.uint8, device=device)
        self.broadcast(text, part)
        return json.loads(bytes(text.tolist()))

    def barrier(self):
        with _together():
            dist.barrier()


@contextmanager
def _together():
    """What the processes do at once fails in all of them when one has died."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "Another process of this job has died or cannot be reached: the same command goes on from the last state."
        ) from error


def join_group(device):
    """The Group that torchrun's environment variables describe. UserError where its processes do not meet."""
    if not dist.is_initialized():
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"The processes of this job do not find each other (start them by torchrun): {error}"
            ) from error
        atexit.register(_leave)
    return Group(dist.get_rank(), dist.get_world_size())


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()

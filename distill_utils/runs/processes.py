"""The processes of one job, under torchrun or alone: who owns what, and how they agree to the last bit.

Work is divided into numbered parts, part n to rank n mod size; its owner then broadcasts the part. Every rank
adds the parts up in the same order as one process would, so that the number of processes changes nothing in
the result.
"""

import atexit
import json
import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from distill_utils.runs.errors import Diverged, UserError

_TIMEOUT = timedelta(minutes=30)  # a rank that dies is noticed at once; this is for one that hangs


class World:
    """This process among `size`; rank 0 alone writes files and prints."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size

    @property
    def first(self):
        return self.rank == 0

    def owns(self, part):
        return part % self.size == self.rank

    def broadcast(self, tensor, part):
        """Overwrites `tensor` on every rank by that of the owner of `part`."""
        if self.size > 1:
            with _together():
                dist.broadcast(tensor, src=part % self.size)

    def add_up(self, tensor):
        """The sum of all ranks' tensors, on each: exact for integers, and where all but one of them are 0."""
        if self.size > 1:
            with _together():
                dist.all_reduce(tensor)
        return tensor

    def share(self, value, part, device):
        """The JSON value that the owner of `part` passes, on every rank; the others' is not looked at."""
        if self.size == 1:
            return value
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

    def map(self, functions, device):
        """The JSON values of functions(), in order, on every rank; function n is called by the owner of part
        n alone.

        A UserError that one of them raises is raised on every rank.
        """
        done = {}
        for n, function in enumerate(functions):
            if self.owns(n):
                try:
                    done[n] = {"value": function()}
                except UserError as error:
                    done[n] = {"error": str(error), "diverged": isinstance(error, Diverged)}
                    break
        values = []
        for n in range(len(functions)):
            result = self.share(done.get(n), n, device)
            if "error" in result:  # the first one; what its process left undone comes after it
                raise (Diverged if result["diverged"] else UserError)(result["error"])
            values.append(result["value"])
        return values

    def barrier(self):
        if self.size > 1:
            with _together():
                dist.barrier()


ALONE = World()


@contextmanager
def _together():
    """What the processes do at once fails in all of them when one has died."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "Another process of this job has died or cannot be reached: the same command goes on from the last state."
        ) from error


def local_device():
    """The GPU that torchrun means for this process (`cuda:LOCAL_RANK`), or None outside torchrun and without
    GPUs.
    """
    return (
        f"cuda:{int(os.environ['LOCAL_RANK'])}"
        if "LOCAL_RANK" in os.environ and torch.cuda.is_available()
        else None
    )


def is_first():
    """Whether this process is the one that prints, also before it has joined the others."""
    return int(os.environ.get("RANK", 0)) == 0


def join(device):
    """The World that torchrun's environment variables describe: NCCL between GPUs, gloo between CPUs; ALONE
    without them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
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
    return World(dist.get_rank(), dist.get_world_size())


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()

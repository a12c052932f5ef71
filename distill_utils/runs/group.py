"""Several processes of one job, as torch.distributed joins them."""

import atexit
import json
import os
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from distill_utils.runs.errors import UserError
from distill_utils.runs.world import World

# A process that dies is noticed at once. One that hangs is given up after _LIMIT where all are at the same
# work, and after _PATIENCE where they wait for a part of it, such as a student, that is as long as it is.
_LIMIT = timedelta(minutes=20)
_PATIENCE = timedelta(days=3)


class Group(World):
    """This process among `size` that torchrun has started."""

    def __init__(self, rank, size, patient):
        """patient: the process group that waits for _PATIENCE."""
        self.rank, self.size, self._patient = rank, size, patient

    def broadcast(self, tensor, part, group=None):
        whole = tensor.contiguous()  # what travels is memory, whatever its layout here and there
        with _together():
            dist.broadcast(whole, src=part % self.size, group=group)
        if whole is not tensor:
            tensor.copy_(whole)

    def add_up(self, tensor):
        with _together():
            dist.all_reduce(tensor, group=self._patient)
        return tensor

    def share(self, value, part, device):
        owner = self.owns(part)
        text = torch.tensor(
            list(json.dumps(value).encode() if owner else b""), dtype=torch.uint8, device=device
        )
        length = torch.tensor([len(text)], device=device)
        self.broadcast(length, part, self._patient)
        if not owner:
            text = torch.empty(int(length), dtype=torch.uint8, device=device)
        self.broadcast(text, part, self._patient)
        return json.loads(bytes(text.tolist()))

    def barrier(self):
        with _together():
            dist.barrier(group=self._patient)


@contextmanager
def _together():
    """What the processes do at once fails in all of them when one has died or hangs."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "Another process of this job has died, cannot be reached or does not answer: "
            "the same command goes on from the last state."
        ) from error


def join_group(device):
    """The Group that torchrun's environment variables describe. UserError where its processes do not meet."""
    if not dist.is_initialized():
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
                # An exception at the limit, of which a sentence can be made; by default NCCL aborts.
                os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LIMIT)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"The processes of this job do not find each other (start them by torchrun): {error}"
            ) from error
        atexit.register(_leave)
    return Group(dist.get_rank(), dist.get_world_size(), _patient_group())


@cache  # one, however many runs this process makes
def _patient_group():
    return dist.new_group(timeout=_PATIENCE)


def _leave():
    if dist.is_initialized():
        dist.destroy_process_group()

"""Which process of a job this is, as torchrun's environment variables say, and how it joins the others."""

import os

from distill_utils.runs.world import ALONE


def is_first():
    """Whether this process is the one that prints, also before it has joined the others."""
    return int(os.environ.get("RANK", 0)) == 0


def local_rank():
    """The number that torchrun gives this process on its host, None outside torchrun."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def join(device):
    """The World that torchrun's environment variables describe: NCCL between GPUs, gloo between CPUs; ALONE
    without them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ALONE
    from distill_utils.runs.group import join_group  # torch takes seconds that a process alone may do without

    return join_group(device)

"""Which process of a job this is, as torchrun's environment variables say, and how it joins the others."""

import os
import signal
import threading
import time
from functools import cache

from distill_utils.runs.world import ALONE

_LAST_WORDS = 30  # seconds to save what there is, once the launcher is gone


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
    follow_launcher()
    from distill_utils.runs.group import join_group  # torch takes seconds that a process alone may do without

    return join_group(device)


@cache
def follow_launcher():
    """From now on this process, where torchrun or the like has started it, ends when its launcher does, be it
    by kill -9: as by SIGTERM, and by force if that is of no avail.
    """
    if "RANK" in os.environ:
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(launcher):
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS)
    os._exit(128 + signal.SIGTERM)

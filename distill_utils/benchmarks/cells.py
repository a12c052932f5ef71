"""A cell: one thing measured alone, in a process of its own, so that its peak memory is its own."""

import multiprocessing
import statistics
import time

from distill_utils.runs.devices import reset_peak, synchronise
from distill_utils.runs.errors import UserError, first_line


def in_own_process(function, *args):
    """function(*args) in a fresh process; {"error": sentence} where that process died or raised."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        reason = ", probably out of memory" if process.exitcode == -9 else ""
        return {"error": f"the process ended with status {process.exitcode}{reason}"}
    finally:
        process.join()


def send_result(sender, function, args):
    """What `in_own_process` runs in the other process."""
    try:
        sender.send(function(*args))
    except (UserError, RuntimeError, MemoryError) as error:
        sender.send({"error": first_line(error)})


def required(result, complaint):
    """A cell's result; UserError, beginning with the complaint, where it has none."""
    if "error" in result:
        raise UserError(f"{complaint}: {result['error']}")
    return result


def timed(step, device, repeats, warm_up=1):
    """Seconds of step(0), step(1), ...; those of the warm-up are left out of the times and of the peak."""
    seconds = []
    for n in range(warm_up + repeats):
        if n == warm_up:
            reset_peak(device)
        synchronise(device)
        began = time.perf_counter()
        step(n)
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return seconds[warm_up:]


def spread(seconds):
    """The median, which stands for a cell in the tables, and how far single times lie from it."""
    median = statistics.median(seconds)
    return {"seconds": median, "min": min(seconds), "max": max(seconds), "n": len(seconds)}

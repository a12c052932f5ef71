"""A process that has imported everything and forks for each command: a start takes milliseconds, and may be
killed like any other.

Reads JSON lines {"program", "argv", "cwd", "output", ...} or {"wait": pid}; answers {"pid"} or {"status"}. A
command can be told to kill itself at the n-th call of a function ({"kill": ["os.replace", n]}), be given a
limit of the size of files ({"limit": bytes}), or further environment variables ({"environment": {...}}).
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "TQDM_MININTERVAL": "30",
}

import torch  # noqa: E402

PROGRAMS = ("buffer", "distill_lors", "distill_utils.evaluate", "distill_utils.coreset")


def kill_at(name, count):
    """SIGKILL to this very process at the count-th call of module.function."""
    module, _, function = name.rpartition(".")
    module = importlib.import_module(module)
    original, calls = getattr(module, function), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, counted)


def run(command, modules):
    os.chdir(command["cwd"])
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(command.get("environment", {}))
    if "kill" in command:
        kill_at(*command["kill"])
    if "limit" in command:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["limit"], command["limit"]))
    sys.argv = [command["program"], *command["argv"]]
    status = 1
    try:
        status = modules["run"].run_program(modules[command["program"]].main)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    modules = {program: importlib.import_module(program) for program in PROGRAMS} | {
        "run": importlib.import_module("distill_utils.runs.signals")
    }
    importlib.import_module("transformers.models.bert.modeling_bert")
    torch.set_num_threads(1)  # and no work here, so that there are no threads that a fork would lose
    for line in sys.stdin:
        command = json.loads(line)
        if "wait" in command:
            answer = {"status": os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])}
        else:
            pid = os.fork()
            if not pid:
                run(command, modules)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

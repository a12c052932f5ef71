"""A run: its folder, arguments, log, curves, device and random numbers; the only place that knows wandb."""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
import yaml

from distill_utils.errors import UserError
from distill_utils.files import read_json, write_json, write_text
from distill_utils.precision import set_precision


def run_program(main):
    """Exit status of `main(sys.argv[1:])`; a UserError is one line on stderr and status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def derive_seed(seed, *parts):
    """A seed for one purpose, independent of how many random numbers the others draw."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:7], "little")


def generator(seed, *parts):
    """A CPU generator for one purpose of the run."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


def resolve_device(name):
    """`auto`, `cpu`, or any device that torch names and that is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def provenance(device, seed):
    """What besides the flags a result depends on."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "git_commit": commit,
        "seed": seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({os.cpu_count()} cores)",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in ("torch", "torchvision", "timm", "transformers", "numpy")},
    }


class Run:
    """The folder `logged_files/<dataset>/<name>`: args.yaml, log.jsonl, results.json, and wandb's copy of the log."""

    def __init__(self, args, program, default_name, directory=None):
        """`directory` opens a run that another program owns: its args.yaml stays, ours is `<program>_args.yaml`."""
        self.program = program
        self.name = args.name or default_name
        self.directory = Path(directory) if directory else Path("logged_files") / args.dataset / self.name
        self.device = resolve_device(args.device)
        set_precision(args.precision, self.device)
        self.seed = args.seed
        torch.manual_seed(derive_seed(args.seed, program))
        resolved = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(args).items() if key != "config"}
        record = resolved | {"_run": provenance(self.device, args.seed)}
        write_text(self.directory / (f"{program}_args.yaml" if directory else "args.yaml"), yaml.safe_dump(record, sort_keys=False))
        self._log_path = self.directory / "log.jsonl"
        if not directory:
            self._log_path.unlink(missing_ok=True)
        self._wandb = self._start_wandb(args.wandb, resolved)

    def _start_wandb(self, mode, config):
        if mode == "disabled":
            return None
        import wandb

        project = os.environ.get("WANDB_PROJECT", "LoRS")
        return wandb.init(project=project, name=self.name, mode=mode, dir=str(self.directory), config=config, job_type=self.program)

    def log(self, step, values):
        """One line of log.jsonl, and the same to wandb. Values are numbers; `step` counts outer steps, or epochs of an expert."""
        line = {"program": self.program, "step": step, "time": round(time.time(), 3)} | values
        with open(self._log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)

    def update_results(self, values):
        """Merge top-level keys into results.json."""
        path = self.directory / "results.json"
        write_json(path, read_json(path, {}) | values)

    def finish(self):
        if self._wandb:
            self._wandb.finish()

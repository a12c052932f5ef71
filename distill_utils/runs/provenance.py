"""Where a result comes from: command, commit, machine, versions."""

import platform
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy")


def _command():
    """What was typed after `python`, as it would be typed at the repository's root."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join([*(["-m", module.name] if module else [Path(sys.argv[0]).name]), *sys.argv[1:]])


def provenance(device, seed, packages=_PACKAGES):
    """What besides the flags a result depends on: `device` in words, versions of `packages`."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        commit = subprocess.run(
            [*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "command": _command(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "git_commit": commit,
        "seed": seed,
        "device": device,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }

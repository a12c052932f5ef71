"""A run's folder: its arguments, log, results and state, and wandb's copy of its curves; the only place that
knows wandb.
"""

import html
import json
import os
import secrets
import time
from pathlib import Path

import torch

from distill_utils.runs import processes
from distill_utils.runs.devices import describe_device, resolve_device, set_precision
from distill_utils.runs.errors import UserError
from distill_utils.runs.locks import hold, locked
from distill_utils.runs.provenance import provenance
from distill_utils.runs.reading import read_json, read_yaml
from distill_utils.runs.seeds import derive_seed
from distill_utils.runs.tensors import load_tensors, save_tensors
from distill_utils.runs.writing import append_line, remove_orphans, write_json, write_text, write_yaml

# Flags that a run may change when it goes on: none of its results depends on them.
_FREE = set(
    "Iteration save_it max_bad_steps resume resume_from device num_workers wandb path_device check_gradient "
    "image_root ann_root".split()
)


# Seconds that a requeued Slurm job gives its predecessor, which has been told to stop.
_PATIENCE = 300.0


class Run:
    """The folder `logged_files/<dataset>/<name>`: args.yaml, log.jsonl, results.json, state.pt, and wandb's
    copy of the log.

    `world`: the processes that share the run; the first alone writes. `state`: what `save_state` left at an
    earlier start of the same command, or None where the run begins anew.
    """

    def __init__(
        self, args, program, default_name, *, directory=None, resume=False, divided=False, shared=False
    ):
        """directory: of a run that another program owns; its args.yaml and log stay, ours is
        `<program>_args.yaml`. resume: go on from state.pt where there is one. divided: the processes of a
        torchrun job are one run. shared: they are not, and any number of them works in this folder at once.
        """
        self.program = program
        self.name = args.name or default_name
        self.directory = Path(directory) if directory else Path("logged_files") / args.dataset / self.name
        self.device = resolve_device(args.device)
        processes.follow_launcher()
        if processes.is_first():
            print(f"{program} computes on {describe_device(self.device)}, in {args.precision}", flush=True)
        self.world = processes.join(self.device) if divided else processes.ALONE
        set_precision(args.precision, self.device)
        self.seed = args.seed
        torch.manual_seed(derive_seed(args.seed, program))
        self._arguments = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(args).items()
            if key != "config"
        }
        self._log_path, self._state_path = self.directory / "log.jsonl", self.directory / "state.pt"
        self._lock = None
        if not shared:
            self.world.map([self._take], self.device)  # the first process for all; its mistake is everyone's
        self.state = self._earlier_state() if resume else None
        self.world.barrier()  # until all have read it
        own_args = self.directory / (f"{program}_args.yaml" if directory else "args.yaml")
        before = read_yaml(own_args).get("_run") if self.state or shared else None
        before = before if isinstance(before, dict) else {}
        self.id = before.get("id") or secrets.token_hex(4)
        self._mode, self._wandb = args.wandb, None
        if not self.world.first:
            return
        remove_orphans(self.directory)
        if self.state:
            self._cut_log(self.state["logged"])
        elif not directory and not shared:
            for path in (self._state_path, self._log_path, self.directory / "results.json"):
                path.unlink(missing_ok=True)
        record = provenance(describe_device(self.device), args.seed) | {
            "id": self.id,
            "processes": self.world.size,
        }
        if self.state:  # how the run began stays, how it went on is added
            record = before | {"resumed": [*before.get("resumed", []), {"step": self.state["step"]} | record]}
        write_yaml(own_args, self._arguments | {"_run": record})
        if not shared:
            self.open_wandb(self.name, self.id)

    def _take(self):
        """Hold the folder for the life of this run: two programs that write into one folder mix."""
        patience = _PATIENCE if int(os.environ.get("SLURM_RESTART_COUNT") or 0) else 0.0
        self._lock = hold(self.directory / ".run.lock", patience)

    # --- state ---

    def _earlier_state(self):
        if not self._state_path.exists():
            return None
        state = load_tensors(self._state_path)
        kinds = {"arguments": dict, "logged": int, "step": int}
        if not isinstance(state, dict) or not all(isinstance(state.get(key), kinds[key]) for key in kinds):
            raise UserError(
                f"{self._state_path} is not the state of a run: begin anew with --fresh, or give another "
                "--name."
            )
        was = state["arguments"]
        for key, value in self._arguments.items():
            if key not in _FREE and was.get(key, value) != value:
                raise UserError(
                    f"{self.directory} holds a run with --{key} {was[key]}, not {value}: give "
                    "another --name, or --fresh to begin it anew."
                )
        return state

    def save_state(self, state, logged):
        """Write state.pt, the earlier one staying until this is whole; the log, up to the step `logged`, is
        on the disk first.
        """
        if not self.world.first:
            return
        if self._log_path.exists():
            with open(self._log_path, "rb") as file:
                os.fsync(file.fileno())
        save_tensors(
            self._state_path, state | {"arguments": self._arguments, "logged": logged, "wandb_id": self.id}
        )

    def _cut_log(self, logged):
        """Take out this program's lines after the step `logged`, which are about to be written again, and
        lines that are not whole.
        """
        kept = []
        for text in (
            self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            if self._log_path.exists()
            else ()
        ):
            line = _parsed(text)
            if line and (line["program"] != self.program or line["step"] <= logged):
                kept.append(text + "\n")
        write_text(self._log_path, "".join(kept))

    # --- log ---

    def open_wandb(self, name, id, **options):
        """Send what follows to the wandb run `id`, which goes on if it exists; disabled, nowhere."""
        if self._mode == "disabled":
            return
        import wandb

        if self._wandb:
            self._wandb.finish()
        project = os.environ.get("WANDB_PROJECT", "LoRS")
        self._wandb = wandb.init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            mode=self._mode,
            dir=str(self.directory),
            config=self._arguments,
            job_type=self.program,
            **options,
        )

    def log_line(self, step, values):
        return {"program": self.program, "step": step, "time": round(time.time(), 3)} | values

    def log(self, step, values):
        """One line of log.jsonl, and the same to wandb. Values are numbers; `step` counts outer steps."""
        if not self.world.first:
            return
        append_line(self._log_path, json.dumps(self.log_line(step, values)))
        self.log_wandb(step, values)

    def summarise(self, values):
        """Numbers of the run as a whole, to wandb's summary; results.json has them in full."""
        if self._wandb:
            self._wandb.summary.update(values)

    def log_wandb(self, step, values):
        if self._wandb:
            self._wandb.log(values, step=step)

    def log_panels(self, step, make):
        """To wandb alone: make() -> (images [n, 3, H, W] in [0, 1], a sentence of each), as the panels of
        images and sentences.
        """
        if not self._wandb:
            return
        import wandb

        images, sentences = make()
        pictures = [
            wandb.Image(pixels.permute(1, 2, 0).cpu().numpy(), caption=sentence)
            for pixels, sentence in zip(images, sentences)
        ]
        listed = "<br>".join(f"{n}: {html.escape(sentence)}" for n, sentence in enumerate(sentences))
        self._wandb.log({"Synthetic_Images": pictures, "Synthetic_Sentences": wandb.Html(listed)}, step=step)

    def rewrite_log(self, lines):
        """log.jsonl from all its lines, lines(), which other processes may be doing too."""
        with locked(self.directory / ".lock"):
            write_text(self._log_path, "".join(json.dumps(line) + "\n" for line in lines()))

    def update_results(self, values):
        """Merge top-level keys into results.json."""
        if self.world.first:
            path = self.directory / "results.json"
            write_json(path, read_json(path, {}) | values)

    def finish(self):
        self.world.barrier()
        if self._wandb:
            self._wandb.finish()
        self._lock = None


def _parsed(text):
    """A line of a log, or None for one that is none, such as one that a death has torn."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and isinstance(line.get("program"), str)
    return line if whole and isinstance(line.get("step"), (int, float)) else None

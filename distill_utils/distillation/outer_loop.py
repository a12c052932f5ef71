"""The outer loop's steps: guarded updates of the synthetic set, and all that they change as a state that can
be saved.
"""

import time

import torch
from tqdm import tqdm

from distill_utils.runs.devices import peak_mb
from distill_utils.runs.errors import UserError
from distill_utils.runs.signals import undisturbed

_MAX_RESTORES = 3  # returns to a good set, with ever smaller steps, before a run gives up


class OuterLoop:
    """The set, its optimiser and its objective; between two outer steps, and inside one, they can be saved.

    step: outer steps done, from first_step on. unlogged: {name: number} of that step while no one has
    recorded it, else None.
    """

    def __init__(
        self,
        synthetic,
        objective,
        optimizer,
        *,
        clamp_lr,
        max_lr=float("inf"),
        max_bad_steps=5,
        last_good=None,
        average=None,
        clip_grad=0.0,
    ):
        """last_good() -> SyntheticSet to go back to after `max_bad_steps` steps in a row without a finite
        gradient. average: an Average of the set, which is then what counts. clip_grad: the largest norm of
        the gradient of everything together, where above 0.
        """
        self.synthetic, self.objective, self.optimizer = synthetic, objective, optimizer
        self.clamp_lr, self.max_lr = clamp_lr, max_lr
        self.max_bad_steps, self.last_good, self.average = max_bad_steps, last_good, average
        self.step = self.first_step = synthetic.meta.get("step", 0)
        self.unlogged = {}
        self.clip_grad = clip_grad
        self.bad_steps, self.restores = 0, 0
        self._began = time.perf_counter()

    @property
    def result(self):
        """The set to evaluate and to save: the average where there is one."""
        return self.average.average if self.average else self.synthetic

    def recorded(self):
        """The step done is on record: what follows belongs to the next one."""
        self.unlogged = None
        self._began = time.perf_counter()

    def update(self, outcome):
        """Step k + 1 is done: the set moves by `.grad`, which an objective has filled; its numbers are then
        in `unlogged`.
        """
        step, synthetic = self.step + 1, self.synthetic
        bad = [
            name
            for name, parameter in synthetic.named_parameters()
            if not torch.isfinite(parameter.grad).all()
        ]
        with undisturbed():
            if bad:
                where = ", ".join(
                    f"{'start epoch' if name == 'epoch' else name} {n}" for name, n in outcome.where.items()
                )
                values = self._skip(
                    f"outer step {step}, {where}: the gradient of {', '.join(bad)} is not finite"
                )
                values |= {f"Guard/{name}": number for name, number in outcome.where.items()}
            else:
                values = dict(outcome.values)
                self.bad_steps = 0
                if self.clip_grad:
                    norm = torch.nn.utils.clip_grad_norm_(synthetic.parameters(), self.clip_grad)
                    values["Gradient/norm"] = norm.item()
                self.optimizer.step()
                with torch.no_grad():
                    for lr in (synthetic.lr_img, synthetic.lr_txt):
                        lr.clamp_(self.clamp_lr, self.max_lr)
                if self.average:
                    self.average.update()
            values |= {
                "Synthetic_LR/Image": synthetic.lr_img.item(),
                "Synthetic_LR/Text": synthetic.lr_txt.item(),
            }
            values |= {
                "seconds": round(time.perf_counter() - self._began, 4),
                "memory_mb": round(peak_mb(synthetic.images.device) or 0),
            }
            self.step, self.unlogged = step, values
            self.objective.commit()

    def _skip(self, reason):
        """Leave the set as it is; after too many times, go back to the last good one with half the step
        sizes.
        """
        self.bad_steps += 1
        values = {"Guard/bad_steps": self.bad_steps}
        if self.bad_steps < self.max_bad_steps:
            tqdm.write(f"{reason}; the step is skipped")
            return values
        if self.restores == _MAX_RESTORES or self.last_good is None:
            often = f"{self.bad_steps} times in a row and after {self.restores} restarts from a good set"
            hint = "lower --lr_img, --lr_txt, --lr_sim or --lr_lr. All that was saved is whole."
            raise UserError(f"{reason}, {often}: {hint}")
        good = self.last_good()
        with torch.no_grad():
            for parameter, value in zip(self.synthetic.parameters(), good.parameters()):
                parameter.copy_(value)
        if self.average:
            self.average.begin()
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        self.bad_steps, self.restores = 0, self.restores + 1
        tqdm.write(f"{reason}; the set of step {good.meta['step']} is restored and all step sizes are halved")
        return values | {"Guard/restored_step": good.meta["step"], "Guard/step_sizes": 0.5**self.restores}

    # --- state ---

    def state(self):
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "step": self.step,
            "first_step": self.first_step,
            "unlogged": self.unlogged,
            "set": self.synthetic.saved(),
            "momentum": [
                self.optimizer.state[parameter].get("momentum_buffer") for parameter in self._parameters()
            ],
            "bad_steps": self.bad_steps,
            "restores": self.restores,
            "average": self.average.state() if self.average else None,
        } | self.objective.state()

    def load_state(self, state, source):
        """Go on from a `state`, whose synthetic set is already this one; UserError, naming `source`, if it
        does not fit.
        """
        momentum, parameters = state.get("momentum"), self._parameters()
        fits = isinstance(momentum, list) and len(momentum) == len(parameters)
        for value, parameter in zip(momentum if fits else (), parameters):
            fits &= value is None or isinstance(value, torch.Tensor) and value.shape == parameter.shape
        fits &= all(
            isinstance(state.get(key), int) for key in ("step", "first_step", "bad_steps", "restores")
        )
        fits &= isinstance(state.get("unlogged"), (dict, type(None))) and self.objective.fits(state)
        fits &= not self.average or self.average.fits(state.get("average"))
        if not fits:
            reason = "its set, its optimiser and these flags do not belong together"
            raise UserError(f"{source} is not the state of a run like this one: {reason}.")
        self.step, self.first_step, self.unlogged = state["step"], state["first_step"], state["unlogged"]
        self.bad_steps, self.restores = state["bad_steps"], state["restores"]
        for value, parameter in zip(momentum, parameters):
            if value is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = value.to(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.5**self.restores
        self.objective.load_state(state)
        if self.average:
            self.average.load_state(state.get("average"))

    def _parameters(self):
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

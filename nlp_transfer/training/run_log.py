"""Write training metrics to `log.jsonl` and to the trackers."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nlp_transfer.security.file_locks import read_record
from nlp_transfer.training.callbacks import Callback, Step, Trainer
from nlp_transfer.training.trackers import finish_trackers
from nlp_transfer.utils.atomic_files import append, write_bytes
from nlp_transfer.utils.errors import UserError


class RunLog(Callback):
    """Writes metrics to `log.jsonl` and to the trackers, in the main process only.

    Validation metrics are nested under `validation` in the file and have the prefix `validation/` in trackers.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path | None) -> None:
        self.accelerator = accelerator
        self.path = output_dir / "log.jsonl" if output_dir is not None and accelerator.is_main_process else None
        self.last_step, self.loss = 0, math.nan
        """Step of the last line, and the mean loss in it."""
        self._unlogged: list[Mapping[str, torch.Tensor]] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        """Remove the lines of steps that this run will repeat."""
        self.drop_after(trainer.position.step, not trainer.position.unjudged)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """After every `training.logging_steps` steps, write a line with means over these steps.

        All processes take part, since their losses are added up.
        """
        self._unlogged.append(step.values)
        if step.number % trainer.settings.logging_steps and trainer.position.phase_step != trainer.total_steps:
            return
        means = {
            name: float(self.accelerator.reduce(torch.stack([values[name] for values in self._unlogged]).mean(), "sum"))
            for name in step.values
        }
        self._unlogged.clear()
        self.last_step, self.loss = step.number, means["loss"]
        fields = {"epoch": step.epoch, **means, "learning_rate": step.learning_rate, "grad_norm": step.grad_norm}
        speed = trainer.position.examples / trainer.position.step_seconds
        self.write(step.number, **fields, examples_per_second=speed)

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Write a line with the validation metrics."""
        self.write(trainer.position.step, validation=dict(metrics))

    def on_phase_end(self, trainer: Trainer, phase: Any) -> None:
        """Forget the steps after the last line."""
        self._unlogged.clear()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Close the trackers."""
        finish_trackers(self.accelerator)

    def drop_after(self, step: int, evaluated: bool = True) -> None:
        """Remove the lines of later steps, which the resumed run repeats.

        Args:
            step: the step from which the run resumes.
            evaluated: whether the evaluation after this step is finished. False: the line of this evaluation is removed too.

        Raises:
            UserError: the log cannot be read, is too large or is not a regular file.
        """
        if self.path is None or not os.path.lexists(self.path):
            return
        try:
            lines = read_record(self.path).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise UserError(f"{self.path}: is not the log of a run ({error}); remove or rename it to resume") from error
        lines = [line for line in lines if _sort_key(line) <= (step, evaluated)]
        write_bytes(self.path, "".join(f"{line}\n" for line in lines).encode())

    def write(self, step: int, **fields: Any) -> None:
        """Log numbers by name. `validation` is a dict of numbers."""
        if self.path is None:
            return
        validation = fields.pop("validation", {})
        line = {"step": step, **_finite(fields)} | ({"validation": _finite(validation)} if validation else {})
        append(self.path, json.dumps(line, allow_nan=False).encode() + b"\n")
        tracked = {f"train/{name}": value for name, value in fields.items()}
        tracked |= {f"validation/{name}": value for name, value in validation.items()}
        self.accelerator.log(tracked, step=step)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """Replace infinity and NaN, which JSON does not have, with None. In fp16, the gradient norm may be infinite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _sort_key(line: str) -> tuple[float, bool]:
    """Return the step of a line and whether it is about an evaluation. Unreadable lines sort last."""
    try:
        content = json.loads(line)
        return float(content["step"]), "validation" in content
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf, True

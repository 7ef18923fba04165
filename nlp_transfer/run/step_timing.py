"""Measure a few optimizer steps of a run, to estimate its duration."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nlp_transfer.run.result import peak_memory
from nlp_transfer.training.callbacks import Callback, Step, Trainer

STEPS = 5  # optimizer steps to measure
MAX_SECONDS = 20.0  # fewer steps are measured if they take longer


@dataclass(frozen=True)
class Estimate:
    """What a dry run measured.

    Attributes:
        steps: Optimizer steps of the run; of its first phase if the strategy has several.
        step_seconds: Mean duration of a measured step, without the first one if there are several.
        seconds: Estimated duration of all `steps`, without evaluations.
        peak_memory_bytes: Peak memory after the measured steps, of the GPU if there is one, otherwise of the process.
        loss: Loss of the first step.
    """

    steps: int
    step_seconds: float
    seconds: float
    peak_memory_bytes: int
    loss: float


class Measured(Exception):  # noqa: N818  # not an error
    """Ends training before evaluations and checkpoints."""


@dataclass
class Stopwatch(Callback):
    """Measures optimizer steps, and ends training after the last one."""

    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    loss: float = 0.0
    last: float = 0.0

    def on_phase_start(self, trainer: Trainer, phase: Any) -> None:
        """Start the clock."""
        self.steps, self.last = trainer.total_steps, time.monotonic()

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Record the duration of a step, whose loss has been read from the device, so that it is finished."""
        now = time.monotonic()
        self.seconds.append(now - self.last)
        self.last = now
        self.loss = self.loss if len(self.seconds) > 1 else step.loss
        alone = trainer.accelerator.num_processes == 1  # several processes must stop at the same step
        if len(self.seconds) >= min(STEPS, trainer.total_steps) or (alone and sum(self.seconds) > MAX_SECONDS):
            raise Measured

    def run(self, trainer: Trainer) -> Estimate:
        """Take the steps, which need this object among the callbacks of the trainer."""
        with suppress(Measured):
            trainer.train()
        seconds = self.seconds[1:] or self.seconds  # the first step also allocates memory
        mean = sum(seconds) / max(1, len(seconds))
        return Estimate(self.steps, mean, mean * self.steps, peak_memory(), self.loss)

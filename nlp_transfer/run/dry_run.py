"""Check a run completely and estimate its duration and memory, without training it and without an output folder."""

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.run.folder import Resume, RunFolder
from nlp_transfer.run.resolve import resolve
from nlp_transfer.run.result import peak_memory
from nlp_transfer.run.run import Run
from nlp_transfer.run.stages import build, encode, read
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.strategies import Strategy, parts_of
from nlp_transfer.training.callbacks import Callback, Step, Trainer, note_on_callbacks
from nlp_transfer.training.interruption import Signals
from nlp_transfer.utils.console import Level, duration, number, say

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


class _Measured(Exception):  # noqa: N818  not an error: it ends training before evaluations and checkpoints
    pass


@dataclass
class _Stopwatch(Callback):
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
            raise _Measured


def dry_run(document: Document, resume: Resume = "auto", allow_hub_metrics: bool = False) -> Estimate | None:
    """Do everything that precedes training, then a few optimizer steps; print the settings and an estimate.

    Nothing is written to `output_dir`. Trackers and the user's callbacks are not started.

    Args:
        document: settings of the run.
        resume: as in `fine_tune`.
        allow_hub_metrics: as in `fine_tune`.

    Returns:
        The estimate, or None if the strategy takes no optimizer steps.

    Raises:
        UserError: settings or data are invalid.
        TrainingError: the loss is not finite, or memory is insufficient.
    """
    check_launch()
    run, watch = resolve(document), _Stopwatch()
    say(*describe_unused(run.unused.items()), *note_on_callbacks(run.callbacks))
    training = run.config.training.model_copy(update={"trackers": [], "callbacks": []})
    run = replace(run, config=run.config.model_copy(update={"training": training}), callbacks=[watch])
    with RunFolder(run.config.output_dir, resume) as folder, Signals():
        folder.check()
        run = build(encode(read(run, allow_hub_metrics)), folder, dry=True)
        if not run.strategy.traits.takes_steps:
            say("dry run: all checks passed; the strategy takes no optimizer steps; nothing was written", level=Level.QUIET)
            return None
        with suppress(_Measured):
            run.trainer.train()
        unfinished = folder.unfinished
    estimate = _estimate(watch)
    say(*_lines(run, watch, estimate, unfinished), level=Level.QUIET)
    return estimate


def _estimate(watch: _Stopwatch) -> Estimate:
    seconds = watch.seconds[1:] or watch.seconds  # the first step also allocates memory
    mean = sum(seconds) / len(seconds)
    return Estimate(watch.steps, mean, mean * watch.steps, peak_memory(), watch.loss)


def _lines(run: Run, watch: _Stopwatch, estimate: Estimate, unfinished: bool) -> list[str]:
    has_phases = any(type(part).next_phase is not Strategy.next_phase for part in parts_of(run.strategy).values())
    lines = [
        f"dry run: {len(watch.seconds)} optimizer steps, {number(estimate.step_seconds, 3)} seconds each, first loss "
        f"{number(estimate.loss)}",
        f"estimate: {duration(estimate.seconds)} for {estimate.steps:,} steps{' of the first phase' if has_phases else ''}, "
        f"without evaluations; {estimate.peak_memory_bytes / 2**30:.2f} GiB of memory so far (longer texts need more)",
    ]
    if unfinished:
        lines.append(f"{run.config.output_dir} holds an unfinished run, which train would resume")
    return [*lines, "all checks passed; nothing was written"]

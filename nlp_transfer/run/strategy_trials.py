"""Train candidates for the strategy of a run on a part of its training rows, and score them on held-out training rows."""

import gc
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.split_sampling import draw_folds, split_off
from nlp_transfer.data.splits import Splits, input_keys
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.inference.scoring import score
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.run.run import Run
from nlp_transfer.run.stages import build, encode, save
from nlp_transfer.run.step_timing import Stopwatch
from nlp_transfer.training.callbacks import Callback, Step, Trainer
from nlp_transfer.training.phase_plan import automatic_epochs
from nlp_transfer.utils.console import quiet_output

FOLDS = 5
MOST_HELD_OUT = 500  # rows of a fold that are scored
MEASURED = 128  # rows that are prepared to measure the cost of a row and of a step


class TooSlow(Exception):  # noqa: N818  # not an error
    """Ends a trial that takes much longer than estimated."""


@dataclass
class Deadline(Callback):
    """Ends training after a number of seconds."""

    seconds: float

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Check the time.

        Raises:
            TooSlow: the time is over.
        """
        if time.monotonic() - self.started > self.seconds:
            raise TooSlow


@dataclass(frozen=True)
class Speed:
    """The measured cost of training with a strategy.

    Attributes:
        fixed: Seconds that do not depend on the number of rows.
        row: Seconds of preparation for each row, such as its cached features.
        step: Seconds of an optimizer step.
        step_rows: Training rows of an optimizer step.
        max_steps: Number of optimizer steps, whatever the number of rows. None: it depends on `epochs`.
        epochs: Number of epochs. None: chosen by the number of steps in an epoch (`automatic_epochs`).
    """

    fixed: float
    row: float
    step: float
    step_rows: float
    max_steps: int | None
    epochs: float | None

    def seconds(self, rows: int) -> float:
        """Estimate the duration of training on a number of rows, without evaluations."""
        steps_in_epoch = max(1, round(rows / self.step_rows))
        epochs = automatic_epochs(steps_in_epoch) if self.epochs is None else self.epochs
        return self.fixed + self.row * rows + self.step * (self.max_steps or epochs * steps_in_epoch)


class HeldOutFolds:
    """Stratified folds of the training rows of a run; rows with the same text or group are in one fold.

    Args:
        run: the run after `read`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.train = run, run.splits.train
        self.seed = run.config.training.seed
        self.strata, self.keys = run.task.describe(self.train).strata, input_keys(run.task, self.train)
        self.fold_of = draw_folds(self.train, FOLDS, self.strata, self.keys, run.config.data.group, self.seed)

    @property
    def training_rows(self) -> int:
        """Number of rows outside the largest fold."""
        return len(self.train) - int(np.bincount(self.fold_of, minlength=FOLDS).max())

    @property
    def are_possible(self) -> bool:
        """Whether there are rows in every fold, and most rows have another one like them to learn from."""
        _, stratum, sizes = np.unique(self.strata, return_inverse=True, return_counts=True)
        return len(np.unique(self.fold_of)) == FOLDS and bool((sizes[stratum] > 1).mean() > 0.5)

    def splits(self, rows: int, fold: int | None = None) -> Splits:
        """Return up to `rows` rows outside a fold as `train`, and rows of the fold as `test`. Without a fold, there is no `test`.

        The validation split is omitted, so that the last weights are scored, unless the settings cannot do without it.
        """
        parts = {name: part for name, part in self.run.splits.rows.items() if name != "test"}
        task, training = self.run.task, self.run.config.training
        if "validation" in parts and not (
            self.run.strategy.traits.needs_validation or training.early_stopping or task.traits.calibration(task) is not None
        ):
            del parts["validation"]
        parts["train"] = self._sample(np.flatnonzero(self.fold_of != (-1 if fold is None else fold)), rows)
        if fold is not None:
            parts["test"] = self._sample(np.flatnonzero(self.fold_of == fold), MOST_HELD_OUT)
        return Splits(parts)

    def _sample(self, rows: np.ndarray, count: int) -> Rows:
        """Draw a stratified sample of about `count` of the rows (int64 indices)."""
        chosen = self.train.select(rows)
        if len(rows) <= count:
            return chosen
        parts = self.strata[rows], self.keys[rows]
        kept, _ = split_off(chosen, 1 - count / len(rows), *parts, self.run.config.data.group, self.seed)
        return chosen.select(kept)


def measure(run: Run, folds: HeldOutFolds) -> Speed:
    """Prepare a sample of the rows and take a few steps, and return what they cost."""
    started, watch = time.monotonic(), Stopwatch()
    with _built(run, folds.splits(MEASURED), [watch]) as built:
        built_seconds, rows = time.monotonic() - started, len(built.job.tables["train"])
        takes_steps, training = run.strategy.traits.takes_steps, run.config.training
        step = watch.run(built.trainer).step_seconds  # without steps, this is all of the training
        by_row = built.data_seconds if takes_steps else time.monotonic() - started
        return Speed(
            fixed=max(0.0, built_seconds - by_row),
            row=by_row / rows,
            step=step,
            step_rows=rows / built.trainer.planner.window_plan().windows_in_epoch if takes_steps else rows,
            max_steps=training.max_steps,
            epochs=None if isinstance(training.epochs, str) else training.epochs,
        )


def train_and_score(run: Run, splits: Splits, deadline: float) -> tuple[ScoredSplit, float]:
    """Train on the rows of `splits`, and score the saved model on its test rows.

    Args:
        deadline: seconds after which training is ended.

    Returns:
        Predictions and references of the test rows, and the seconds that preparation, training and scoring took.

    Raises:
        TooSlow: the deadline is over.
    """
    started = time.monotonic()
    with _built(run, splits, [Deadline(deadline)]) as built, tempfile.TemporaryDirectory() as folder:
        built.trainer.train()
        saved = save(built, RunFolder(folder))
        table, accelerator = saved.job.tables["test"], saved.trainer.accelerator
        _, predictions = score(saved.model, saved.job.task, table, accelerator, precision=PRECISION)
        return ScoredSplit(predictions, table.references), time.monotonic() - started


@contextmanager
def _built(run: Run, splits: Splits, callbacks: Sequence[Callback]) -> Iterator[Run]:
    """Encode splits and build a model for them, without output, trackers and the user's callbacks; write nothing."""
    training = run.config.training.model_copy(update={"trackers": [], "callbacks": []})
    data = run.config.data.model_copy(update={"token_cache": "none"})
    run = replace(run, config=run.config.model_copy(update={"training": training, "data": data}))
    with quiet_output(), tempfile.TemporaryDirectory() as folder:
        set_seed(training.seed)
        yield build(encode(replace(run, splits=splits, callbacks=callbacks)), RunFolder(str(Path(folder) / "trial")), dry=True)
    gc.collect()  # models and trainers refer to each other


def pooled(parts: Sequence[ScoredSplit]) -> ScoredSplit:
    """Join the predictions of several folds."""
    predictions, references = (
        {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}
        for arrays in ([part.predictions for part in parts], [part.references for part in parts])
    )
    return ScoredSplit(predictions, references)

"""The callbacks of every run: moving average, progress, early stopping, augmentation, evaluation and checkpoints."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np

from nlp_transfer.models.accelerator import in_any_process, in_fp32
from nlp_transfer.models.preparation import train_mode
from nlp_transfer.settings.extensions import load_function
from nlp_transfer.strategies import Phase
from nlp_transfer.training.callback_states import encode_states
from nlp_transfer.training.callbacks import Batch, Callback, Step, Trainer
from nlp_transfer.training.gradient import Augment, NotFiniteError
from nlp_transfer.training.optimizer import MovingAverage, state_by_name
from nlp_transfer.training.validation_scores import score_validation
from nlp_transfer.utils.console import Level, Steps, number, say
from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import Interrupted

CHECKPOINT_SECONDS = 900.0  # maximum time between checkpoints


class WeightAverage(Callback):
    """Averages the weights (`training.ema`). The checkpointer stores the averages, and evaluation uses them."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_phase_start(self, trainer: Trainer, phase: Phase) -> None:
        """Add the parameters that this phase trains."""
        trainer.checkpointer.average = trainer.checkpointer.average or MovingAverage(self.decay)
        trainer.checkpointer.average.include(trainer.model)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Update the averages."""
        trainer.checkpointer.average.update(trainer.model)


class ProgressBar(Callback):
    """Shows the progress of each phase."""

    steps: Steps | None = None

    def on_phase_start(self, trainer: Trainer, phase: Phase) -> None:
        """Show the progress of the phase."""
        title = "training" if phase.name == "train" else f"training ({phase.name})"
        self.steps = Steps(title, trainer.total_steps, trainer.position.phase_step)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Advance the progress. After steps that were logged, show the loss."""
        assert self.steps is not None
        if trainer.run_log.last_step == step.number:
            speed = trainer.position.examples / trainer.position.step_seconds
            note = f"loss {number(trainer.run_log.loss, 3)}, {number(speed, 1)} examples/s"
            self.steps.note(note)
            rate, norm = f"learning rate {step.learning_rate:.3g}", f"gradient norm {number(step.grad_norm, 3)}"
            say(f"step {step.number}: {note}, {rate}, {norm}", level=Level.VERBOSE)
        self.steps.advance()

    def on_phase_end(self, trainer: Trainer, phase: Phase) -> None:
        """Remove the progress."""
        if self.steps is not None:
            self.steps.close()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Remove the progress, so messages are readable."""
        if self.steps is not None:
            self.steps.close()


class EarlyStopping(Callback):
    """Ends a phase after `patience` evaluations without improvement (`training.early_stopping`)."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def on_evaluate(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """End the phase if there was no improvement in `patience` evaluations. `Phase.patience` overrides the setting."""
        position = trainer.position
        patience = position.phase.patience or self.patience
        if patience is not None and position.worse >= patience:
            position.stopped = True
            say(f"no improvement for {position.worse} evaluations, training stops")


class Augmentation(Callback):
    """Changes the training batches of phases that train on the rows and with the loss of the task.

    Args:
        augment: function that takes a batch, its row indices and the number of optimizer steps taken, and returns the changed
            batch.
    """

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def on_batch(self, trainer: Trainer, batch: Batch, rows: np.ndarray) -> Batch | None:
        """Change the batch, unless the phase uses other rows or another objective."""
        phase = trainer.position.phase
        return self.augment(batch, rows, trainer.position.step) if phase.split == "train" and phase.objective is None else None


class RowNames(Callback):
    """In the message about a loss that is not finite, names the rows by file and row number.

    Args:
        describe: function that takes row indices in `train` and returns their description.
    """

    def __init__(self, describe: Callable[[np.ndarray], str]) -> None:
        self.describe = describe

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Name the rows."""
        if isinstance(error, NotFiniteError):
            error.names = self.describe(error.rows)


class Evaluation(Callback):
    """Evaluates on validation every `training.evaluate_every` steps (default: each epoch), and at the end of each phase."""

    def on_phase_start(self, trainer: Trainer, phase: Phase) -> None:
        """Repeat an evaluation that was interrupted.

        Raises:
            Interrupted: a signal interrupted it again. The checkpoint from which the run resumed remains.
        """
        if trainer.position.unjudged:
            if self._evaluate(trainer):
                trainer.checkpoints.save(trainer, best=True)
            if trainer.position.unjudged:
                _raise_interrupted(trainer)
            _agree_to_stop(trainer)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Evaluate if an evaluation is due, or if a callback has stopped training."""
        position = trainer.position
        _agree_to_stop(trainer)
        position.unjudged = _is_evaluation_due(trainer) and position.phase.evaluate and "validation" in trainer.data
        if position.unjudged and not _is_interrupted(trainer):
            self._evaluate(trainer)
            _agree_to_stop(trainer)

    def _evaluate(self, trainer: Trainer) -> bool:
        """Evaluate and return whether these are the best weights so far.

        A resumed run repeats an evaluation that was interrupted by a signal.
        """
        try:
            metrics, best_metric, higher = self._score(trainer)
        except Interrupted:
            return False
        trainer.position.unjudged = False
        better: bool = trainer.position.record_evaluation(metrics, best_metric, higher)
        trainer.callbacks.call("on_evaluate", trainer, metrics)
        return better

    def _score(self, trainer: Trainer) -> tuple[dict[str, float], str, bool]:
        """Compute the validation metrics, with the averaged weights if there are any."""
        average, accelerator = trainer.checkpointer.average, trainer.accelerator
        trainer.update_weights()
        if average is not None:
            average.swap(trainer.model)
        try:
            # With several processes, a signal must not interrupt one of them here, since the others would hang.
            with trainer.signals.held(accelerator.num_processes > 1), in_fp32(trainer.model):
                return score_validation(
                    trainer.model, trainer.task, trainer.data["validation"], trainer.strategy, trainer.settings, accelerator,
                    trainer.user_metrics,
                )  # fmt: skip
        finally:
            if average is not None:
                average.swap(trainer.model)
            train_mode(trainer.model)


class Checkpoints(Callback):
    """Saves checkpoints every `training.checkpoint_every` steps (default: at each evaluation).

    It also saves new best weights, after 15 minutes without a checkpoint, after the last step of a phase, and on signals.
    """

    def __init__(self) -> None:
        self._saved_at = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the newest checkpoint is too old."""
        return time.monotonic() - self._saved_at > CHECKPOINT_SECONDS

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Save if a checkpoint is due.

        Raises:
            Interrupted: a signal arrived. If there is an output folder, the step is saved.
        """
        position, every = trainer.position, trainer.settings.checkpoint_every
        interrupted, best = _is_interrupted(trainer), position.best_step == position.step
        due = _is_last_step(trainer) or (position.step % every == 0 if every else _is_evaluation_due(trainer))
        if best or due or trainer.flags.overdue or interrupted:
            self.save(trainer, best)
        if interrupted:
            _raise_interrupted(trainer)

    def save(self, trainer: Trainer, best: bool) -> None:
        """Save a checkpoint. Without an output folder, keep the best weights in memory."""
        scaler, position, checkpointer = trainer.accelerator.scaler, trainer.position, trainer.checkpointer
        position.seconds = time.monotonic() - trainer.began
        position.scaler = dict(scaler.state_dict()) if scaler is not None else {}
        checkpointer.optimizer_state |= state_by_name(trainer.optimizer)
        if checkpointer.writes and checkpointer.folder is not None:
            position.callbacks, checkpointer.callback_tensors = encode_states(trainer.callbacks.named())
        path = checkpointer.save(position, best, give_up=lambda: trainer.signals.received is not None)
        self._saved_at = time.monotonic()
        trainer.accelerator.wait_for_everyone()
        if path is not None:
            trainer.callbacks.call("on_checkpoint", trainer, path)


def in_order(trainer: Trainer, users: Sequence[Callback]) -> list[Callback]:
    """Return all callbacks of a run, in the order in which they are called.

    Args:
        trainer: the trainer. Its settings, `run_log` and `checkpoints` must be set.
        users: callbacks of the user.

    Raises:
        UserError: the settings augment words, but no callback does so.
    """
    settings, augment = trainer.settings, trainer.settings.augment
    if isinstance(augment, str):
        users = [Augmentation(load_function("training.augment", augment)), *users]
    elif augment is not None and augment.shares and not any(isinstance(each, Augmentation) for each in users):
        raise UserError(
            "training.augment: shares of words need a tokenizer; allowed with Trainer: callbacks=[Augmentation(make_augmenter("
            "settings, tokenizer, data['train'], max_length))], or a function, as package.module:function"
        )
    return [
        *([WeightAverage(settings.ema)] if settings.ema else []),
        trainer.run_log,
        ProgressBar(),
        EarlyStopping(settings.early_stopping),
        *users,
        Evaluation(),
        trainer.checkpoints,
    ]


def _agree_to_stop(trainer: Trainer) -> None:
    """Record in all processes whether any of them has called `stop`."""
    if trainer.may_be_stopped:
        trainer.should_stop = in_any_process(trainer.accelerator, trainer.should_stop)
    trainer.position.ended = trainer.position.ended or trainer.should_stop


def _is_last_step(trainer: Trainer) -> bool:
    """Return whether the current step is the last one of its phase, without regard to early stopping."""
    return bool(trainer.position.ended or trainer.position.phase_step == trainer.total_steps)


def _is_evaluation_due(trainer: Trainer) -> bool:
    """Return whether an evaluation is due after the current step. Whether there is a validation split is not considered."""
    every = trainer.settings.evaluate_every or trainer.plan.windows_in_epoch
    return _is_last_step(trainer) or bool(trainer.position.phase_step % every == 0)


def _is_interrupted(trainer: Trainer) -> bool:
    """Return whether a signal will end the run after the current step."""
    alone = trainer.accelerator.num_processes == 1
    return bool(trainer.flags.signal or (alone and trainer.signals.received is not None))


def _raise_interrupted(trainer: Trainer) -> NoReturn:
    """End the run because of a signal. If there is an output folder, the current step must be saved."""
    saved = f"step {trainer.position.step} is saved; run the same command again to resume"
    nothing = "nothing is saved: there is no output folder"
    raise Interrupted(trainer.signals.received or signal.SIGTERM, saved if trainer.output_dir is not None else nothing)

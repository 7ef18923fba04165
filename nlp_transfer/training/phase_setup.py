"""Prepare a training phase: trainable parameters, optimizer, and the gradient of its windows."""

from collections.abc import Iterator
from contextlib import contextmanager

from nlp_transfer.data.row_weights import WEIGHT
from nlp_transfer.models.accelerator import release_model
from nlp_transfer.models.preparation import train_mode
from nlp_transfer.strategies import Phase
from nlp_transfer.training.callbacks import Trainer
from nlp_transfer.training.gradient import WindowGradient
from nlp_transfer.training.optimizer import make_optimizer, named_groups, restore_state, state_by_name
from nlp_transfer.training.step import PhaseOptimizer
from nlp_transfer.utils.errors import UserError


@contextmanager
def prepared_phase(trainer: Trainer, phase: Phase) -> Iterator[WindowGradient]:
    """Set `trainer.optimizer` and `trainer.phase_optimizer` for a phase. Release the prepared model at the end of the phase."""
    model, settings, accelerator, checkpointer = trainer.model, trainer.settings, trainer.accelerator, trainer.checkpointer
    names = set(phase.trainable or ())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    model.to(accelerator.device)
    groups = named_groups(model, settings, trainer.strategy)
    peak = trainer.planner.learning_rate() * phase.learning_rate_scale
    trainer.optimizer = optimizer = make_optimizer(model, groups, peak, settings.optimizer)
    checkpointer.begin_phase(trainer.position, [name for group in groups for name in group.names])
    if not phase.keep_optimizer and trainer.position.phase_step == 0:
        checkpointer.optimizer_state = {}
    restore_state(optimizer, checkpointer.optimizer_state)
    # Prepare the model again for each phase: if a parameter were unfrozen after wrapping, its gradient would not be synchronized.
    forward_before = vars(model).get("forward")
    wrapped, prepared = accelerator.prepare(model, optimizer)
    fast = trainer.resolved.kernels == "fast"
    trainer.phase_optimizer = PhaseOptimizer(model, prepared, accelerator, settings, trainer.strategy, phase, fast)
    table = trainer.planner.table(phase)
    if phase.objective and WEIGHT in table.dense:
        raise UserError(f"data.weight: phase {phase.name} has a loss that does not use weights of rows; allowed: null")
    objective = trainer.objectives[phase.objective] if phase.objective else trainer.task.objective(settings, table)
    train_mode(model)
    change = trainer.callbacks.change_of_batches(trainer)
    yield WindowGradient(wrapped, objective, table, trainer.plan, trainer.phase_optimizer, change)
    trainer.phase_optimizer.sync()
    checkpointer.optimizer_state |= state_by_name(optimizer)
    release_model(accelerator, model, forward_before)

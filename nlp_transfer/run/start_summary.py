"""Summarize a run before training: resolved settings with reasons, and the number of steps."""

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.data.windows import WindowPlan
from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.models.checkpoint import new_parameters
from nlp_transfer.models.preparation import count_parameters
from nlp_transfer.training.optimizer import ineffective_strategies
from nlp_transfer.training.trainer import Trainer
from nlp_transfer.utils.console import percent

FEW_STEPS = 100


def summary_lines(trainer: Trainer) -> list[str]:
    """Return the lines to print before training starts."""
    trainable, total = count_parameters(trainer.model)
    # A strategy without optimizer steps computes its new parameters, so they are not random.
    new = sorted(new_parameters(trainer.model)) if trainer.strategy.traits.takes_steps else []
    lines = [
        f"{trainable:,} of {total:,} parameters are trained ({percent(trainable, total)})"
        + (f"; randomly initialized: {', '.join(new[:4])}{' ...' if len(new) > 4 else ''}" if new else ""),
        *_resolved_lines(trainer),
        *describe_unused(ineffective_strategies(trainer.model, trainer.settings, trainer.strategy).items()),
    ]
    if not trainer.strategy.traits.takes_steps:
        return [*lines, f"no optimizer step is taken; the strategy computes its parameters on {trainer.accelerator.device}"]
    steps, epochs, plan = trainer.planner.steps(), trainer.planner.epochs(), trainer.planner.window_plan()
    rows = plan.batch_size * plan.accumulation * plan.processes
    tokens = (plan.batch_tokens or 0) * plan.accumulation * plan.processes
    size = f"about {tokens:,} tokens" if plan.batch_tokens else f"{rows:,} rows"
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    lines.append(
        f"learning rate {trainer.planner.learning_rate():g}, {float(f'{epochs:.3g}'):g} epoch{'s' * (epochs != 1)}, "
        f"{steps:,} step{'s' * (steps != 1)} of {size}, {processes} on {trainer.accelerator.device}"
    )
    if smoothing := trainer.task.objective(trainer.settings).label_smoothing:
        lines.append(f"label smoothing {smoothing:g}; not used in the loss of validation and test")
    lines += _weighting_lines(trainer, plan)
    if steps < FEW_STEPS:
        lines.append(
            f"warning: only {steps} optimizer steps; fine-tuning with so few often gives poor results. Use more epochs or a "
            "smaller batch (Mosbach et al. 2021, 2006.04884)"
        )
    return lines


def _resolved_lines(trainer: Trainer) -> list[str]:
    """Return a line for precision, attention, kernels and batch size, each with the reason."""
    resolved, training = trainer.resolved, trainer.settings
    values = {"precision": resolved.precision, "attention": resolved.attention, "kernels": resolved.kernels}
    lines = [f"{name} {value} ({resolved.reasons[name]})" for name, value in values.items()]
    if resolved.precision != PRECISION:
        lines[0] += f"; metrics are computed in {PRECISION}"
    if "batch_size" in resolved.reasons and training.batch_tokens is None:
        steps = training.gradient_accumulation_steps
        accumulated = f", {steps} gradient accumulation steps" if steps > 1 else ""
        lines.append(f"batch size {training.rows}{accumulated} ({resolved.reasons['batch_size']})")
    return lines


def _weighting_lines(trainer: Trainer, plan: WindowPlan) -> list[str]:
    """Return a line for each setting that weights, oversamples or augments rows."""
    training, lines = trainer.settings, []
    if training.focal_gamma:
        lines.append(f"focal loss, gamma {training.focal_gamma:g}")
    if plan.repeats is not None:
        lines.append(f"oversampling: {plan.rows_in_epoch:,} rows per epoch instead of {len(plan.lengths):,}")
        if training.class_weights == "balanced":
            weights = trainer.task.objective(training, trainer.data["train"]).class_weights
            assert weights is not None, "tasks without classes refuse both settings"
            lines.append(
                f"class weights balanced: {float(weights.min()):.3g} to {float(weights.max()):.3g}, computed after oversampling"
            )
    if isinstance(training.augment, str):
        lines.append(f"augmentation by {training.augment}")
    elif training.augment is not None and training.augment.shares:
        shares = ", ".join(f"{name} {value:g}" for name, value in training.augment.shares.items())
        lines.append(f"augmentation, shares of words: {shares}")
    return lines

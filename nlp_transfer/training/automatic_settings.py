"""Resolve training settings that are `auto`, and return the reason for each value."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.accelerator import allow_unused_parameters, check_accelerator, make_accelerator
from nlp_transfer.models.device import resolve_precision
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task
from nlp_transfer.training.batch_size import fit_batch
from nlp_transfer.training.preflight import Preflight
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main
from nlp_transfer.utils.errors import UserError

MAX_EAGER_TOKENS = 160  # up to this mean row length, eager attention is faster than sdpa in bf16 on CPUs


@dataclass(frozen=True)
class ResolvedSettings:
    """The settings of a run after all `auto` values have been resolved."""

    training: TrainingConfig
    """Training settings; `batch_size` is a number."""
    accelerator: Accelerator
    """The accelerator, which determines the device and the processes."""
    precision: str
    """`fp32`, `bf16` or `fp16`."""
    attention: str
    """Attention implementation of transformers, such as `sdpa` or `eager`."""
    kernels: str
    """`fast` or `plain`."""
    reasons: dict[str, str]
    """Reasons for `precision`, `attention`, `kernels` and, if it was `auto`, `batch_size`."""


def resolve_settings(
    model: nn.Module,
    train: TokenTable | None,
    training: TrainingConfig,
    output_dir: Path | None = None,
    accelerator: Accelerator | None = None,
    task: Task | None = None,
) -> ResolvedSettings:
    """Resolve `auto` settings and set the attention implementation of the model.

    Args:
        train: training rows. None: `batch_size` is not resolved.
        output_dir: folder for the files of trackers.
        accelerator: sets device, precision and processes. None: create it from the settings.
        task: task for a trial step on two rows of `train`. If the step fails, other precisions and kernels are tried. None: no
            trial step.

    Raises:
        UserError: the machine or the model does not support a setting.
        TrainingError: memory is insufficient for a single row.
    """
    precision, precision_reason = resolve_precision(training.precision, encoder_type(model.config))
    if accelerator is None:
        accelerator = make_accelerator(training, precision, output_dir)
        precision, precision_reason = broadcast_from_main((precision, precision_reason))
    else:
        check_accelerator(accelerator)
    mixed = accelerator.mixed_precision
    if (accelerator_precision := "fp32" if mixed == "no" else mixed) != precision:
        precision, precision_reason = accelerator_precision, "the accelerator's"
    reasons = {"precision": precision_reason}
    kernels, reasons["kernels"] = broadcast_from_main(resolve_kernels(training, accelerator.device))
    length = 0.0 if train is None else float(train.ragged["input_ids"].lengths.mean())
    attention, reasons["attention"] = set_attention(
        training.attention, model, accelerator.device, precision, length, kernels == "fast"
    )
    if (main_attention := broadcast_from_main(attention)) != attention:
        attention, _ = set_attention(main_attention, model, accelerator.device, precision, length, kernels == "fast")
    if train is not None and task is not None:
        trial = Preflight(task, model, train, training)
        working_precision, kernels, fallbacks = trial.find_working(precision, kernels, accelerator)
        reasons |= fallbacks
        if working_precision != precision:
            precision, accelerator = working_precision, make_accelerator(training, working_precision, output_dir)
        if accelerator.num_processes > 1 and (unused := broadcast_from_main(trial.unused)):
            allow_unused_parameters(accelerator)
            say(
                f"{len(unused)} trainable parameters, such as {unused[0]}, received no gradient in a trial step; "
                "find_unused_parameters is enabled for all steps"
            )
    if train is not None and training.batch_size == "auto":
        training, reasons["batch_size"] = broadcast_from_main(fit_batch(model, train, training, accelerator, precision))
    return ResolvedSettings(training, accelerator, precision, attention, kernels, reasons)


def resolve_kernels(training: TrainingConfig, device: torch.device) -> tuple[str, str]:
    """Return `fast` or `plain`, and the reason.

    On GPUs, `plain` is used even if the setting is `fast`, so the `config.yaml` of a run works on any machine.

    Raises:
        UserError: the settings combine fast kernels with gradient checkpointing.
    """
    if training.kernels == "fast" and device.type != "cpu":
        return "plain", f"fast kernels require a CPU, and this run uses {device.type}"
    if training.kernels == "fast" and training.gradient_checkpointing:
        raise UserError("training.kernels: found fast with training.gradient_checkpointing; allowed: auto, plain")
    if training.kernels != "auto":
        return training.kernels, "as set"
    if training.gradient_checkpointing:
        return "plain", "fast kernels do not support gradient checkpointing"
    return ("fast", "faster on CPUs") if device.type == "cpu" else ("plain", "PyTorch's kernels are fast on this device")


def set_attention(
    requested: str, model: Any, device: torch.device, precision: str, length: float, fast: bool = False
) -> tuple[str, str]:
    """Set the attention implementation of a model. Return its name and the reason for the choice.

    On CPUs in bf16, PyTorch's fused attention is slower than eager attention for rows of up to about 200 tokens. A forward and
    backward pass took 28 ms fused and 4.5 ms eager for 64 rows of 15 tokens, and 39 ms fused and 14 ms eager for 16 rows of 128
    tokens.

    Args:
        requested: `auto`, or a name such as `sdpa` or `eager`.
        length: mean number of tokens per row.
        fast: whether the fast kernels replace the fused attention of PyTorch.

    Raises:
        UserError: the model family does not support this implementation, or does not support it in this precision.
    """
    if requested.startswith("flash") and precision == "fp32":
        raise UserError(
            f"training.attention: found {requested}, which requires bf16 or fp16; the precision is fp32; allowed: auto, sdpa, or "
            "training.precision: bf16 on a machine that supports it"
        )
    short = device.type == "cpu" and precision == "bf16" and length <= MAX_EAGER_TOKENS and not fast
    implementation, reason = requested, "as set"
    if requested == "auto":
        implementation, reason = ("eager", "faster for short rows in bf16 on CPUs") if short else ("", "transformers' default")
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        return "its own", "not a transformers model"
    outer = models[0]
    # Heads and encoder-decoders of this toolkit have no attention layers themselves. The models inside them have.
    innermost = [inner for inner in models if sum(isinstance(module, PreTrainedModel) for module in inner.modules()) == 1]
    try:
        if implementation:
            outer.set_attn_implementation(implementation)
            if implementation not in {inner.config._attn_implementation for inner in innermost}:  # transformers only logs it
                raise ValueError(f"{innermost[0].config.model_type} models have a single implementation; allowed: auto")
    except (ValueError, ImportError) as error:
        if requested != "auto":
            raise UserError(f"training.attention: found {requested}: {error}") from error
        implementation, reason = "", "the model family has no eager attention"
    for inner in innermost:
        if inner.config._attn_implementation == implementation:
            for module in inner.modules():  # set_attn_implementation does not change copies of a configuration in submodules
                if isinstance(config := getattr(module, "config", None), PretrainedConfig):
                    config._attn_implementation = implementation
    # If one half of an encoder-decoder supports only eager, return the name for the other half: requesting it again gives the
    # same model.
    names = [str(inner.config._attn_implementation) for inner in innermost]
    return next((name for name in names if name != "eager"), "eager"), reason

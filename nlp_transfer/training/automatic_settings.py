"""Resolves training settings that are `auto` for a model, its data and this machine, each with a reason."""

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

MAX_EAGER_TOKENS = 160  # up to this mean length eager attention is the faster one in bf16 on CPUs


@dataclass(frozen=True)
class ResolvedSettings:
    """Device, precision and kernels of a run."""

    training: TrainingConfig
    """The training settings, with a number as `batch_size`."""
    accelerator: Accelerator
    precision: str
    attention: str
    """`sdpa`, `eager` or another name of transformers."""
    kernels: str
    reasons: dict[str, str]
    """The reason for `precision`, `attention`, `kernels` and, if it was `auto`, `batch_size`."""


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
        train: the training rows; None: there are none, and `batch_size` stays as it is.
        output_dir: where trackers write.
        accelerator: determines device, precision and processes; None: made from the settings.
        task: used for a trial step on two rows of `train`; precision and kernels fall back if the model fails in it. None: no
            trial.

    Raises:
        UserError: this machine or this model does not support a setting.
        TrainingError: memory is insufficient for a single row.
    """
    precision, why = resolve_precision(training.precision, encoder_type(model.config))
    if accelerator is None:
        accelerator = make_accelerator(training, precision, output_dir)
        precision, why = broadcast_from_main((precision, why))
    else:
        check_accelerator(accelerator)
    mixed = accelerator.mixed_precision
    if (accelerator_precision := "fp32" if mixed == "no" else mixed) != precision:
        precision, why = accelerator_precision, "the accelerator's"
    reasons = {"precision": why}
    kernels, reasons["kernels"] = broadcast_from_main(resolve_kernels(training, accelerator.device))
    length = 0.0 if train is None else float(train.ragged["input_ids"].lengths.mean())
    attention, reasons["attention"] = set_attention(
        training.attention, model, accelerator.device, precision, length, kernels == "fast"
    )
    if (of_main := broadcast_from_main(attention)) != attention:
        attention, _ = set_attention(of_main, model, accelerator.device, precision, length, kernels == "fast")
    if train is not None and task is not None:
        trial = Preflight(task, model, train, training)
        working, kernels, fallbacks = trial.find_working(precision, kernels, accelerator)
        reasons |= fallbacks
        if working != precision:
            precision, accelerator = working, make_accelerator(training, working, output_dir)
        if accelerator.num_processes > 1 and (unused := broadcast_from_main(trial.unused)):
            allow_unused_parameters(accelerator)
            say(
                f"{len(unused)} trainable parameters, such as {unused[0]}, got no gradient in a trial step: the processes look "
                "for such parameters in each step (find_unused_parameters)"
            )
    if train is not None and training.batch_size == "auto":
        training, reasons["batch_size"] = broadcast_from_main(fit_batch(model, train, training, accelerator, precision))
    return ResolvedSettings(training, accelerator, precision, attention, kernels, reasons)


def resolve_kernels(training: TrainingConfig, device: torch.device) -> tuple[str, str]:
    """Return `fast` or `plain`, and the reason.

    `fast` falls back to `plain` on GPUs, so that the `config.yaml` of a run works on any machine.

    Raises:
        UserError: fast kernels were requested together with gradient checkpointing.
    """
    if training.kernels == "fast" and device.type != "cpu":
        return "plain", f"fast was requested, but the fast kernels are for CPUs and this run uses {device.type}"
    if training.kernels == "fast" and training.gradient_checkpointing:
        raise UserError("training.kernels: found fast with training.gradient_checkpointing; allowed: auto, plain")
    if training.kernels != "auto":
        return training.kernels, "as set"
    if training.gradient_checkpointing:
        return "plain", "the fast ones do not support gradient checkpointing"
    return ("fast", "the faster ones on CPUs") if device.type == "cpu" else ("plain", "PyTorch's are fast on this device")


def set_attention(
    requested: str, model: Any, device: torch.device, precision: str, length: float, fast: bool = False
) -> tuple[str, str]:
    """Set the attention implementation of a model; return its name and the reason.

    PyTorch's fused attention in bf16 on CPUs is slow for short rows (forward and backward, 64 x 15 tokens: 28 ms, eager
    4.5 ms; 16 x 128: 39 ms and 14 ms). It is the faster one from about 200 tokens.

    Args:
        requested: `auto`, or a name such as `sdpa` or `eager`.
        length: mean number of tokens in a row.
        fast: whether the toolkit's own kernel replaces PyTorch's.

    Raises:
        UserError: the model family does not have this implementation, or not in this precision.
    """
    if requested.startswith("flash") and precision == "fp32":
        raise UserError(
            f"training.attention: found {requested}, which requires bf16 or fp16; the precision is fp32; allowed: auto, sdpa, or "
            "training.precision: bf16 on a machine that supports it"
        )
    short = device.type == "cpu" and precision == "bf16" and length <= MAX_EAGER_TOKENS and not fast
    wanted, reason = requested, "as set"
    if requested == "auto":
        wanted, reason = ("eager", "faster for short rows in bf16 on CPUs") if short else ("", "transformers' default")
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if not models:
        return "its own", "not a transformers model"
    outer = models[0]
    # Our heads and encoder-decoders have no attention themselves; the models inside them have.
    innermost = [part for part in models if sum(isinstance(module, PreTrainedModel) for module in part.modules()) == 1]
    try:
        if wanted:
            outer.set_attn_implementation(wanted)
            if wanted not in {part.config._attn_implementation for part in innermost}:  # transformers only warns
                raise ValueError(f"{innermost[0].config.model_type} models have a single implementation; allowed: auto")
    except (ValueError, ImportError) as error:
        if requested != "auto":
            raise UserError(f"training.attention: found {requested}: {error}") from error
        wanted, reason = "", "the model family has no eager attention"
    for part in innermost:
        if part.config._attn_implementation == wanted:
            for module in part.modules():  # set_attn_implementation does not reach copies of a configuration inside the model
                if isinstance(config := getattr(module, "config", None), PretrainedConfig):
                    config._attn_implementation = wanted
    # If only one of encoder and decoder supports more than eager, requesting its implementation again gives the same model.
    names = [str(part.config._attn_implementation) for part in innermost]
    return next((name for name in names if name != "eager"), "eager"), reason

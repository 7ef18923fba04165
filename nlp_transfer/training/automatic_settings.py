"""What the settings leave open (`auto`), decided once for a model, its rows and this machine; each with its reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import encoder_type
from nlp_transfer.models.device import allow_unused_parameters, check_accelerator, make_accelerator, resolve_precision
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Task
from nlp_transfer.training.batch_size import fit_batch
from nlp_transfer.training.preflight import Preflight
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import from_main
from nlp_transfer.utils.errors import UserError

SHORT = 160  # tokens


@dataclass(frozen=True)
class ResolvedSettings:
    """How a run computes. `reasons` says by setting why it is so: precision, attention, kernels, and `batch_size` where it was
    left open."""

    training: TrainingConfig
    """The settings, with a number as `batch_size`."""
    accelerator: Accelerator
    precision: str
    attention: str
    kernels: str
    reasons: dict[str, str]


def resolve_settings(
    model: nn.Module,
    train: TokenTable | None,
    training: TrainingConfig,
    output_dir: Path | None = None,
    accelerator: Accelerator | None = None,
    task: Task | None = None,
) -> ResolvedSettings:
    """Decides what the settings leave open, and lets the model compute attention in the way that was chosen.

    Args:
        train: the rows that are trained on; null: there are none, so that `batch_size` stays what it is.
        output_dir: where trackers write.
        accelerator: brings its own device, precision and processes; null: made from the settings.
        task: what is learned of `train`: two rows are tried before anything else, and precision and kernels fall back where the
            model fails in those that were chosen. null: nothing is tried.

    Raises:
        UserError: a setting asks for what this machine or this model cannot do.
        TrainingError: memory does not suffice for a single row.
    """
    precision, why = resolve_precision(training.precision, encoder_type(model.config))
    if accelerator is None:
        accelerator = make_accelerator(training, precision, output_dir)
        precision, why = from_main((precision, why))
    else:
        check_accelerator(accelerator)
    if (given := {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)) != precision:
        precision, why = given, "the accelerator's"
    reasons = {"precision": why}
    kernels, reasons["kernels"] = from_main(resolve_kernels(training, accelerator.device))
    length = 0.0 if train is None else float(train.ragged["input_ids"].lengths.mean())
    attention, reasons["attention"] = set_attention(
        training.attention, model, accelerator.device, precision, length, kernels == "fast"
    )
    if (decided := from_main(attention)) != attention:
        attention, _ = set_attention(decided, model, accelerator.device, precision, length, kernels == "fast")
    if train is not None and task is not None:
        trial = Preflight(task, model, train, training)
        works, kernels, fallen = trial.settle(precision, kernels, accelerator)
        reasons |= fallen
        if works != precision:
            precision, accelerator = works, make_accelerator(training, works, output_dir)
        if accelerator.num_processes > 1 and (unused := from_main(trial.unused)):
            allow_unused_parameters(accelerator)
            say(
                f"{len(unused)} trained parameters got no gradient in a trial, such as {unused[0]}: the processes look for such "
                "parameters in each step (find_unused_parameters)"
            )
    if train is not None and training.batch_size == "auto":
        training, reasons["batch_size"] = from_main(fit_batch(model, train, training, accelerator, precision))
    return ResolvedSettings(training, accelerator, precision, attention, kernels, reasons)


def resolve_kernels(training: TrainingConfig, device: torch.device) -> tuple[str, str]:
    """`fast` or `plain`, and the reason for it. On other devices than CPUs `fast` falls back to `plain`: a run's `config.yaml`
    must work on any machine.

    Raises:
        UserError: fast is asked for where it cannot be.
    """
    if training.kernels == "fast" and device.type != "cpu":
        return "plain", f"fast was asked for, but the fast ones are for CPUs, and this run computes on {device.type}"
    if training.kernels == "fast" and training.gradient_checkpointing:
        raise UserError("training.kernels: found fast; with training.gradient_checkpointing; allowed: auto, plain")
    if training.kernels != "auto":
        return training.kernels, "asked for"
    if training.gradient_checkpointing:
        return "plain", "gradient checkpointing repeats the forward pass out of their reach"
    return ("fast", "the toolkit's own on CPUs") if device.type == "cpu" else ("plain", "PyTorch's own are good on this device")


def set_attention(
    asked: str, model: Any, device: torch.device, precision: str, length: float, fast: bool = False
) -> tuple[str, str]:
    """Sets the way in which a model computes attention: its name (`sdpa`, `eager` or another of transformers') and the reason.

    PyTorch's fused attention in bf16 on CPUs costs many times the plain products for short rows (64 x 15 tokens: 28 ms
    against 4.5 ms forward and back, 16 x 128: 39 against 14); from about 200 tokens on it is the faster one.

    Args:
        length: tokens of a row, on average.
        fast: whether the toolkit's own kernel takes the place of PyTorch's.

    Raises:
        UserError: the family has no such attention, or it cannot compute in this precision.
    """
    if asked.startswith("flash") and precision == "fp32":
        raise UserError(
            f"training.attention: found {asked}, which computes in bf16 and fp16 alone; precision is fp32; allowed: auto, sdpa, "
            "or training.precision: bf16 on a machine that has it"
        )
    short = device.type == "cpu" and precision == "bf16" and length <= SHORT and not fast
    wanted, reason = asked, "asked for"
    if asked == "auto":
        wanted, reason = ("eager", "the faster one for short rows in bf16 on CPUs") if short else ("", "transformers' choice")
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if not parts:
        return "its own", "no model of transformers"
    inner = parts[0]
    # What computes attention lies inside: heads of the toolkit's own and encoder-decoders have none themselves.
    innermost = [part for part in parts if sum(isinstance(module, PreTrainedModel) for module in part.modules()) == 1]
    try:
        if wanted:
            inner.set_attn_implementation(wanted)
            if wanted not in {part.config._attn_implementation for part in innermost}:  # transformers only warns of it
                raise ValueError(f"{innermost[0].config.model_type} models have one way alone; allowed: auto")
    except (ValueError, ImportError) as error:
        if asked != "auto":
            raise UserError(f"training.attention: found {asked}: {error}") from error
        wanted, reason = "", "the family has no eager one"
    for part in innermost:
        if part.config._attn_implementation == wanted:
            for module in part.modules():  # inside an encoder-decoder their configurations are copies, which are not reached
                if isinstance(config := getattr(module, "config", None), PretrainedConfig):
                    config._attn_implementation = wanted
    # Of an encoder and a decoder one may have eager alone: the other one's name, asked for again, gives both what they have now.
    ways = [str(part.config._attn_implementation) for part in innermost]
    return next((way for way in ways if way != "eager"), "eager"), reason

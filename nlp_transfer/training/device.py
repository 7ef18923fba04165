"""Device, precision and processes: what Accelerate is told, and why."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils.environment import parse_flag_from_env

from nlp_transfer.config import TrainingConfig
from nlp_transfer.errors import UserError
from nlp_transfer.kernels.sdpa import attention_for_fp32

NO_FP16 = ("deberta-v2",)  # attention scores of DeBERTa-v2/v3 overflow in fp16 and turn into NaN


def has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def resolve_precision(asked: str, model_type: str, setting: str = "training.precision") -> tuple[str, str]:
    """The precision (fp32, bf16, fp16) and the reason for it.

    Raises:
        UserError: fp16 is asked for where it cannot work.
    """
    if asked == "fp16" and not torch.cuda.is_available():
        raise UserError(f"{setting}: found fp16; this machine has no CUDA GPU; allowed: auto, bf16, fp32")
    if asked == "fp16" and model_type in NO_FP16:
        raise UserError(f"{setting}: found fp16; {model_type} overflows in fp16; allowed: auto, bf16, fp32")
    if asked != "auto":
        return asked, "asked for"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in bf16"
        if model_type in NO_FP16:
            return "fp32", f"the GPU has no bf16, and {model_type} overflows in fp16"
        return "fp16", "the GPU has no bf16"
    if torch.backends.mps.is_available():
        return "fp32", "bf16 is not proven on this device"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has instructions for bf16"
    return "fp32", "the CPU has no instructions for bf16"


def make_accelerator(training: TrainingConfig, precision: str, output_dir: Path | None = None) -> Accelerator:
    """An Accelerator for this process.

    Raises:
        UserError: a launcher started several processes and they do not work together, or a tracker is not installed.
    """
    # One process may run several jobs in turn, with different precisions; Accelerate keeps the first one's otherwise.
    AcceleratorState._reset_state(reset_partial_state=False)
    _check_gpus()
    try:
        accelerator = Accelerator(
            cpu=not has_accelerator(),  # without this, plain torchrun on CPUs would start unrelated jobs
            mixed_precision="no" if precision == "fp32" else precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=training.process_timeout))],
            log_with=training.trackers or None,
            project_dir=str(output_dir) if output_dir else None,
        )
    except ValueError as error:
        raise UserError(f"training.trackers: found {training.trackers}: {error}") from error
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but {accelerator.num_processes} work together; on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
        )
    return accelerator


def _check_gpus() -> None:
    """Raise a UserError where a launcher started more processes on this machine than it has GPUs."""
    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return
    gpus, process = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if process >= gpus:
        raise UserError(
            f"the launcher: found process {process + 1} on this machine, which has {gpus} CUDA GPU{'s' if gpus > 1 else ''}; "
            f"allowed: one process for each GPU (--nproc_per_node {gpus})"
        )


def release_model(accelerator: Accelerator, model: torch.nn.Module, own_forward: Any = None) -> None:
    """Takes back what `accelerator.prepare` did to a model, so that it can be prepared once more.

    Accelerate leaves a mark on the model that it was prepared. With that mark the next call does nothing: the next phase
    would compute in fp32, whatever the precision is.

    Args:
        own_forward: what the model had as `forward` in place of its class's, before it was prepared.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
    if own_forward is not None:
        model.forward = own_forward
    accelerator.free_memory()


@contextmanager
def in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Let a model that `accelerator.prepare` was given compute in fp32, as the saved model is scored: during evaluation.

    Accelerate wraps autocast around the forward pass of the model itself, and FlashAttention refuses fp32: sdpa takes its place.
    """
    prepared = vars(model).get("forward")
    if "_original_forward" in vars(model):
        model.forward = model._original_forward  # type: ignore[assignment]
    try:
        with attention_for_fp32(model):
            yield
    finally:
        if prepared is not None:
            model.forward = prepared


def seed_step(seed: int, step: int, process: int) -> None:
    """Dropout in a step depends on the run's seed, the step and the process alone, so no generator has to be saved."""
    number = int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` looks after every kind of device, for half a millisecond
    if torch.cuda.is_available():
        torch.cuda.manual_seed(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def is_lost_process(error: BaseException) -> bool:
    """Whether an exchange between processes failed, since one has ended or does not answer."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def inference_device() -> str:
    """Where a saved model answers: this process's GPU, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def finish_trackers(accelerator: Accelerator) -> None:
    """Lets every tracker write out what it holds.

    Accelerate's own `end_training` also takes the process group down, and the next run in these processes would fail.
    """
    for tracker in accelerator.trackers:
        tracker.finish()


def leave_group() -> None:
    """Takes the process group down, where there is one: called when the process is about to end."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

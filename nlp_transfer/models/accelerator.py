"""Set up the processes and the precision of Accelerate, and release prepared models."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import filter_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

from nlp_transfer.models.device import device_type
from nlp_transfer.models.sdpa import attention_for_fp32
from nlp_transfer.settings.launch_config import SUPPORTED
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.utils.distributed import broadcast_from_main, local_rank, world_size
from nlp_transfer.utils.errors import UserError


def make_accelerator(training: TrainingConfig, precision: str, output_dir: Path | None = None) -> Accelerator:
    """Create the Accelerator of this process.

    Precision and gradient accumulation are not read from Accelerate's configuration or environment.

    Args:
        training: the settings of training. Only `process_timeout` and `trackers` are used.
        precision: `fp32`, `bf16` or `fp16`. Every process uses the value of rank 0, which the result has as
            `mixed_precision`.
        output_dir: folder in which trackers write.

    Raises:
        UserError: the processes of a launcher do not form one group, Accelerate does not support this device or configuration, or
            a tracker is not available.
    """
    # Accelerate's state outlives a run. Without this, later runs in this process would have the precision of the first.
    AcceleratorState._reset_state(reset_partial_state=False)
    _check_gpu_count()
    try:
        filter_trackers(training.trackers or None, output_dir)
    except ValueError as error:
        raise UserError(f"training.trackers: found {training.trackers}: {error}") from error
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=training.process_timeout))
    on_cpu = device_type() == "cpu"  # without this, processes that torchrun starts on CPUs would not form a group
    try:
        PartialState(on_cpu, **group.to_kwargs())
        precision = broadcast_from_main(precision)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # larger numbers would divide gradients
            dynamo_backend="no",
            kwargs_handlers=[group],
            log_with=training.trackers or None,
            project_dir=str(output_dir) if output_dir else None,
        )
    except (ValueError, ImportError, NotImplementedError, torch.distributed.DistError) as error:
        raise UserError(f"accelerate: the processes of this run cannot be set up: {error}") from error
    check_accelerator(accelerator)
    launched = world_size()
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but {accelerator.num_processes} form a group; on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
        )
    return accelerator


def check_accelerator(accelerator: Accelerator) -> None:
    """Check an Accelerator, which a caller may have created.

    Raises:
        UserError: gradients or checkpoints would be wrong with it.
    """
    supported = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in supported:
        raise UserError(f"accelerate: found {accelerator.distributed_type.value}, which is not supported; {SUPPORTED}")
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise UserError(
            f"Accelerator: found gradient_accumulation_steps {steps}; allowed: 1; use training.gradient_accumulation_steps"
        )


def _check_gpu_count() -> None:
    """Raise a UserError if a launcher started more processes on this machine than it has GPUs."""
    if device_type() != "cuda":
        return
    gpus, process = torch.cuda.device_count(), local_rank()
    if process >= gpus:
        raise UserError(
            f"the launcher: found process {process + 1} on this machine, which has {gpus} CUDA GPU{'s' if gpus > 1 else ''}; "
            f"allowed: one process for each GPU (--nproc_per_node {gpus})"
        )


def allow_unused_parameters(accelerator: Accelerator) -> None:
    """Let `prepare` wrap models in DistributedDataParallel with `find_unused_parameters`.

    Without it, DistributedDataParallel waits for gradients of parameters that a loss does not use, and fails in the next step.
    """
    handler = accelerator.ddp_handler or DistributedDataParallelKwargs()
    handler.find_unused_parameters = True
    accelerator.ddp_handler = handler


def release_model(accelerator: Accelerator, model: torch.nn.Module, original_forward: Any = None) -> None:
    """Undo `accelerator.prepare`, so that the model can be prepared again.

    Accelerate marks a prepared model, and does not prepare a marked model again. Without this function, the next phase would
    therefore compute in fp32 regardless of the precision.

    Args:
        original_forward: the instance attribute `forward` of the model before `prepare`; None if it had none.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
    if original_forward is not None:
        model.forward = original_forward
    accelerator.free_memory()


@contextmanager
def in_fp32(model: torch.nn.Module) -> Iterator[None]:
    """Let a prepared model compute in fp32 inside the context, so that its metrics equal those of the saved model.

    Accelerate wraps autocast around `model.forward`. FlashAttention does not support fp32, so sdpa replaces it temporarily.
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


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error means that another process of the group has ended or does not respond."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def in_any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return whether a flag is set in at least one process. All processes must call this function."""
    if accelerator.num_processes == 1:
        return flag
    total: torch.Tensor = accelerator.reduce(torch.tensor([float(flag)], device=accelerator.device), "sum")
    return bool(total.item() > 0)


def destroy_process_group() -> None:
    """Destroy the process group, if any, before the process ends."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

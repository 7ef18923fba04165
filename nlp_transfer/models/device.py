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
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import filter_trackers
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs

from nlp_transfer.kernels.sdpa import attention_for_fp32
from nlp_transfer.settings.launch_config import SUPPORTED, configured_precision, flag
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.utils.distributed import broadcast_from_main, world_size
from nlp_transfer.utils.errors import UserError

NO_FP16 = ("deberta-v2",)  # attention scores of DeBERTa-v2/v3 overflow in fp16 and turn into NaN


def device_type() -> str:
    """`cuda`, `mps` or `cpu`: where this process trains, evaluates and predicts."""
    if flag("ACCELERATE_USE_CPU"):
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(asked: str, model_type: str, setting: str = "training.precision") -> tuple[str, str]:
    """The precision (fp32, bf16, fp16) and the reason for it.

    Raises:
        UserError: fp16 is asked for where it cannot work.
    """
    device = device_type()
    if asked == "fp16" and device != "cuda":
        raise UserError(f"{setting}: found fp16; {_no_gpu()}; allowed: auto, bf16, fp32")
    if asked == "fp16" and model_type in NO_FP16:
        raise UserError(f"{setting}: found fp16; {model_type} overflows in fp16; allowed: auto, bf16, fp32")
    if asked != "auto":
        return asked, "asked for"
    configured = configured_precision()
    if configured == "bf16" or (configured == "fp16" and device == "cuda" and model_type not in NO_FP16):
        return configured, "Accelerate's mixed_precision"
    precision, reason = _fastest_precision(device, model_type)
    return precision, reason if configured == "no" else f"{reason}; Accelerate's mixed_precision {configured} cannot be used"


def _no_gpu() -> str:
    return "ACCELERATE_USE_CPU is set" if torch.cuda.is_available() else "this machine has no CUDA GPU"


def _fastest_precision(device: str, model_type: str) -> tuple[str, str]:
    """What a device computes fastest in without harm to this model, and the reason."""
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in bf16"
        if model_type in NO_FP16:
            return "fp32", f"the GPU has no bf16, and {model_type} overflows in fp16"
        return "fp16", "the GPU has no bf16"
    if device == "mps":
        return "fp32", "bf16 is not proven on this device"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has instructions for bf16"
    return "fp32", "the CPU has no instructions for bf16"


def make_accelerator(training: TrainingConfig, precision: str, output_dir: Path | None = None) -> Accelerator:
    """An Accelerator for this process, which takes device, precision and accumulation from here alone.

    Args:
        precision: what rank 0 gives counts in every process; it is left in `mixed_precision`.

    Raises:
        UserError: a launcher started several processes and they do not work together, Accelerate does not work with this device
            or configuration, or a tracker cannot be used.
    """
    # One process may run several jobs in turn, with different precisions; Accelerate keeps the first one's otherwise.
    AcceleratorState._reset_state(reset_partial_state=False)
    _check_gpus()
    try:
        filter_trackers(training.trackers or None, output_dir)
    except ValueError as error:
        raise UserError(f"training.trackers: found {training.trackers}: {error}") from error
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=training.process_timeout))
    on_cpu = device_type() == "cpu"  # without this, plain torchrun on CPUs would start unrelated jobs
    try:
        PartialState(on_cpu, **group.to_kwargs())
        precision = broadcast_from_main(precision)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no" if precision == "fp32" else precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # else the environment's divides gradients
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
            f"the launcher started {launched} processes, but {accelerator.num_processes} work together; on CPUs use "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node N ..."
        )
    return accelerator


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise a UserError for an accelerator with which gradients or checkpoints would be wrong, such as a caller may bring."""
    kinds = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in kinds:
        raise UserError(f"accelerate: found {accelerator.distributed_type.value}, which is not supported; {SUPPORTED}")
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise UserError(f"Accelerator: found gradient_accumulation_steps {steps}; allowed: 1; the setting of training counts")


def allow_unused_parameters(accelerator: Accelerator) -> None:
    """Let models be prepared so that parameters on which a step's loss does not depend are left out of the exchange of gradients.

    Without this, DistributedDataParallel waits for their gradients and fails in the next step.
    """
    handler = accelerator.ddp_handler or DistributedDataParallelKwargs()
    handler.find_unused_parameters = True
    accelerator.ddp_handler = handler


def _check_gpus() -> None:
    """Raise a UserError where a launcher started more processes on this machine than it has GPUs."""
    if device_type() != "cuda":
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
    if (device := device_type()) == "cuda":
        torch.cuda.manual_seed(number)
    elif device == "mps":
        torch.mps.manual_seed(number)


def is_lost_process(error: BaseException) -> bool:
    """Whether an exchange between processes failed, since one has ended or does not answer."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def inference_device() -> str:
    """Where a saved model predicts: where it would be trained."""
    device = device_type()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


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

"""Check Accelerate's configuration: refuse unsupported settings, and report settings that have no effect."""

import os

from accelerate.utils.imports import is_torch_xla_available

from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

SUPPORTED = "allowed: one process on one device, or DDP: several processes on CPUs (gloo) or with a CUDA GPU each (nccl)"
TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("", "0", "n", "no", "f", "false", "off")  # as in Accelerate
BACK_ENDS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration (tensor, context or sequence parallel)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
"""Unsupported back ends, by the environment variable that `accelerate launch` sets."""
MPI = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
}
XLA = ("PJRT_DEVICE", "XRT_TPU_CONFIG")
MIXED = ("no", "bf16", "fp16")
LAUNCHED = "ACCELERATE_DYNAMO_BACKEND"  # set by every `accelerate launch`


def flag(name: str) -> bool:
    """Parse a boolean environment variable as Accelerate does; a variable that is not set is false.

    Raises:
        UserError: the value is neither true nor false.
    """
    value = os.environ.get(name, "").strip().lower()
    if value not in TRUE + FALSE:
        raise UserError(f"{name}: found {os.environ[name]!r}; allowed: true, false")
    return value in TRUE


def configured_precision() -> str:
    """Return `mixed_precision` of Accelerate's configuration, in lower case."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "").strip().lower() or "no"


def check_launch() -> None:
    """Check that the launcher and its configuration are supported, and report settings without effect.

    Raises:
        UserError: Accelerate is configured for a back end other than DDP, or for fp8, or it started one process instead of
            several.
    """
    for name, alternatives in MPI.items():  # first, since only rank 0 prints messages
        if value := next((os.environ[other] for other in alternatives if other in os.environ), None):
            os.environ.setdefault(name, value)
    for name, back_end in BACK_ENDS.items():
        if flag(name):
            raise UserError(f"{name}: found {os.environ[name]}: {back_end} is not supported; {SUPPORTED}; {_remedy(name)}")
    for name in XLA:
        if value := os.environ.get(name):
            raise UserError(f"{name}: found {value}: TPUs and XLA are not supported; {SUPPORTED}; {_remedy(name)}")
    if is_torch_xla_available():
        raise UserError(
            f"torch_xla is installed, and Accelerate would use it: XLA is not supported; {SUPPORTED}; set USE_TORCH_XLA=false"
        )
    if value := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE: found {value}; unset it, and select the device with ACCELERATE_USE_CPU=true or "
            "CUDA_VISIBLE_DEVICES"
        )
    if (precision := configured_precision()) not in MIXED:
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION: found {precision}; allowed: {', '.join(MIXED)}; run `accelerate config` again, or omit "
            "--mixed_precision and set training.precision"
        )
    flag("ACCELERATE_USE_CPU")
    _check_one_process()
    say(*_without_effect())


def _check_one_process() -> None:
    """Refuse `accelerate launch --num_processes 2` on CPUs: it sets MASTER_ADDR, but starts only one process."""
    several = ("WORLD_SIZE", "LOCAL_RANK", *MPI["WORLD_SIZE"])
    if not os.environ.get("MASTER_ADDR") or any(name in os.environ for name in several):
        return
    if LAUNCHED not in os.environ:
        say("running one process: MASTER_ADDR is set, but WORLD_SIZE is not; a launcher of several processes sets both")
        return
    raise UserError(
        "MASTER_ADDR is set, but WORLD_SIZE is not: on CPUs, `accelerate launch --num_processes N` starts one process for any N. "
        "Allowed: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m nlp_transfer ...; for one process, --num_processes 1 "
        "(if this machine sets MASTER_ADDR: env -u MASTER_ADDR accelerate launch ...)"
    )


def _remedy(name: str) -> str:
    return f"run `accelerate config` again, omit the flag of the launcher, or unset {name}"


def _without_effect() -> list[str]:
    """Return a line for each setting of Accelerate's configuration that has no effect."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = os.environ.get(LAUNCHED, "no")
    entries = {
        f"gradient_accumulation_steps {steps}": steps != "1" and "use `training.gradient_accumulation_steps`",
        f"dynamo_backend {compiler}": compiler.lower() != "no" and "models are not compiled",
        "downcast_bf16": flag("ACCELERATE_DOWNCAST_BF16") and "is for TPUs",
    }
    return [f"no effect: {setting} in Accelerate's configuration: {reason}" for setting, reason in entries.items() if reason]

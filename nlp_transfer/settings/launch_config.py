"""Which parts of Accelerate's configuration count in a run; all others are refused before anything is loaded, or reported."""

import os

from accelerate.utils.imports import is_torch_xla_available

from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

SUPPORTED = "allowed: one process on one device, or DDP: several processes on CPUs (gloo) or with a CUDA GPU each (nccl)"
TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("", "0", "n", "no", "f", "false", "off")  # as Accelerate reads flags
BACK_ENDS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration (tensor, context or sequence parallel)",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker's data parallelism",
}
"""By the variable with which `accelerate launch` passes them on."""
MPI = {
    "RANK": ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
}
XLA = ("PJRT_DEVICE", "XRT_TPU_CONFIG")
MIXED = ("no", "bf16", "fp16")
LAUNCHED = "ACCELERATE_DYNAMO_BACKEND"  # set by every `accelerate launch`, whatever its arguments are

COUNTS = "counts"
NO_EFFECT = "no effect"
REFUSED = "refused"
CONFIGURATION: dict[str, tuple[str, str]] = {
    "distributed_type": (COUNTS, "NO, MULTI_CPU and MULTI_GPU; others are refused"),
    "num_processes": (COUNTS, "on CUDA GPUs; on CPUs Accelerate starts one process, which is refused: use torchrun"),
    "num_machines": (COUNTS, ""),
    "machine_rank": (COUNTS, ""),
    "main_process_ip": (COUNTS, ""),
    "main_process_port": (COUNTS, ""),
    "rdzv_backend": (COUNTS, ""),
    "same_network": (COUNTS, ""),
    "gpu_ids": (COUNTS, ""),
    "mpirun_config": (COUNTS, ""),
    "enable_cpu_affinity": (COUNTS, ""),
    "debug": (COUNTS, ""),
    "use_cpu": (COUNTS, "training, evaluation and prediction use the CPU"),
    "mixed_precision": (COUNTS, "bf16 and fp16, where `training.precision` is `auto` and the device can; fp8 is refused"),
    "gradient_accumulation_steps": (NO_EFFECT, "`training.gradient_accumulation_steps` decides"),
    "dynamo_config": (NO_EFFECT, "models are not compiled"),
    "downcast_bf16": (NO_EFFECT, "is for TPUs"),
    "main_training_function": (NO_EFFECT, "is for TPUs and notebooks"),
    "compute_environment": (COUNTS, "LOCAL_MACHINE; SageMaker is refused"),
    "fp8_config": (REFUSED, ""),
    "fsdp_config": (REFUSED, ""),
    "deepspeed_config": (REFUSED, ""),
    "megatron_lm_config": (REFUSED, ""),
    "parallelism_config": (REFUSED, ""),
    **dict.fromkeys(("tpu_name", "tpu_zone", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_env"), (REFUSED, "")),
    **dict.fromkeys(("command_file", "commands"), (REFUSED, "are for TPU pods")),
}
"""By field of Accelerate's configuration (its file, the flags of `accelerate launch`): whether it counts, and what it does."""


def flag(name: str) -> bool:
    """A variable of the environment as Accelerate reads it.

    Raises:
        UserError: it is neither true nor false.
    """
    value = os.environ.get(name, "").strip().lower()
    if value not in TRUE + FALSE:
        raise UserError(f"{name}: found {os.environ[name]!r}; allowed: true, false")
    return value in TRUE


def configured_precision() -> str:
    """The `mixed_precision` of Accelerate's configuration, in lower case."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "").strip().lower() or "no"


def check_launch() -> None:
    """Refuse launchers and configurations that a run cannot work with, and report what has no effect.

    Called before anything is read or built.

    Raises:
        UserError: Accelerate is configured for another back end than DDP or for fp8, or it started one process, not several.
    """
    for name, alternatives in MPI.items():  # so that one process alone speaks, from the first line on
        if found := next((os.environ[other] for other in alternatives if other in os.environ), None):
            os.environ.setdefault(name, found)
    for name, back_end in BACK_ENDS.items():
        if flag(name):
            raise UserError(f"{name}: found {os.environ[name]}: {back_end} is not supported; {SUPPORTED}; {_remedy(name)}")
    for name in XLA:
        if found := os.environ.get(name):
            raise UserError(f"{name}: found {found}: TPUs and XLA are not supported; {SUPPORTED}; {_remedy(name)}")
    if is_torch_xla_available():
        raise UserError(
            f"torch_xla: is installed, and Accelerate would use it: XLA is not supported; {SUPPORTED}; set USE_TORCH_XLA=false"
        )
    if found := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE: found {found}; allowed: not set; ACCELERATE_USE_CPU=true and CUDA_VISIBLE_DEVICES choose "
            "the device"
        )
    if (precision := configured_precision()) not in MIXED:
        raise UserError(
            f"ACCELERATE_MIXED_PRECISION: found {precision}; allowed: {', '.join(MIXED)}; run `accelerate config` again, or set "
            "training.precision and leave --mixed_precision out"
        )
    flag("ACCELERATE_USE_CPU")
    _check_one_process()
    say(*_without_effect())


def _check_one_process() -> None:
    """On CPUs `accelerate launch --num_processes 2` exports an address for two processes, and starts one."""
    several = ("WORLD_SIZE", "LOCAL_RANK", *MPI["WORLD_SIZE"])
    if not os.environ.get("MASTER_ADDR") or any(name in os.environ for name in several):
        return
    if LAUNCHED not in os.environ:
        say("one process: MASTER_ADDR is set, but WORLD_SIZE, which launchers of several processes set, is not")
        return
    raise UserError(
        "MASTER_ADDR: is set, but WORLD_SIZE is not: `accelerate launch --num_processes N` starts one process on CPUs, whatever "
        "N is. Allowed: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m nlp_transfer ...; or for one process, "
        "--num_processes 1 (where the machine itself sets MASTER_ADDR: env -u MASTER_ADDR accelerate launch ...)"
    )


def _remedy(name: str) -> str:
    return f"run `accelerate config` again, leave the launcher's flag for it out, or unset {name}"


def _without_effect() -> list[str]:
    """What Accelerate is configured to do and a run does not."""
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = os.environ.get(LAUNCHED, "no")
    found = {
        f"gradient_accumulation_steps {steps}": steps != "1" and CONFIGURATION["gradient_accumulation_steps"],
        f"dynamo_backend {compiler}": compiler.lower() != "no" and CONFIGURATION["dynamo_config"],
        "downcast_bf16": flag("ACCELERATE_DOWNCAST_BF16") and CONFIGURATION["downcast_bf16"],
    }
    return [f"no effect: {what} in Accelerate's configuration: {entry[1]}" for what, entry in found.items() if entry]

"""Choose the device and the precision of a process, and seed its random generators."""

import os

import numpy as np
import torch

from nlp_transfer.settings.launch_config import configured_precision, flag
from nlp_transfer.utils.errors import UserError

NO_FP16 = ("deberta-v2",)  # attention scores of DeBERTa-v2/v3 overflow in fp16 and turn into NaN


def device_type() -> str:
    """Return `cuda`, `mps` or `cpu`: the device type for training, evaluation and prediction in this process."""
    if flag("ACCELERATE_USE_CPU"):
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def inference_device() -> str:
    """Return the device on which a saved model predicts, such as `cuda:0`. It is the device that training would use."""
    device = device_type()
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device


def resolve_precision(requested: str, model_type: str, setting: str = "training.precision") -> tuple[str, str]:
    """Resolve `auto` and check the precision against the device and the model family.

    Args:
        requested: `auto`, `fp32`, `bf16` or `fp16`.
        model_type: the model family, as in `config.json`.
        setting: name of the setting, for messages.

    Returns:
        The precision (`fp32`, `bf16` or `fp16`), and the reason for it.

    Raises:
        UserError: fp16 was requested, but the device or the model family does not support it.
    """
    device = device_type()
    if requested == "fp16" and device != "cuda":
        reason = "ACCELERATE_USE_CPU is set" if torch.cuda.is_available() else "this machine has no CUDA GPU"
        raise UserError(f"{setting}: found fp16; {reason}; allowed: auto, bf16, fp32")
    if requested == "fp16" and model_type in NO_FP16:
        raise UserError(f"{setting}: found fp16; {model_type} overflows in fp16; allowed: auto, bf16, fp32")
    if requested != "auto":
        return requested, "requested"
    configured = configured_precision()
    if configured == "bf16" or (configured == "fp16" and device == "cuda" and model_type not in NO_FP16):
        return configured, "Accelerate's mixed_precision"
    precision, reason = _fastest_precision(device, model_type)
    return precision, reason if configured == "no" else f"{reason}; Accelerate's mixed_precision {configured} cannot be used"


def _fastest_precision(device: str, model_type: str) -> tuple[str, str]:
    """Return the fastest precision that is safe for the model family on this device, and the reason."""
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in bf16"
        if model_type in NO_FP16:
            return "fp32", f"the GPU has no bf16, and {model_type} overflows in fp16"
        return "fp16", "the GPU has no bf16"
    if device == "mps":
        return "fp32", "bf16 is not tested on this device"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has instructions for bf16"
    return "fp32", "the CPU has no instructions for bf16"


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed PyTorch's generators for one step.

    The random numbers of a step depend only on the run's seed, the step and the process, so checkpoints need no generator states.
    """
    number = int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0])
    torch.default_generator.manual_seed(number)  # torch.manual_seed visits every kind of device, which takes half a millisecond
    if (device := device_type()) == "cuda":
        torch.cuda.manual_seed(number)
    elif device == "mps":
        torch.mps.manual_seed(number)

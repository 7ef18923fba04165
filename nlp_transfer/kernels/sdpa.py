"""Which attention kernels of PyTorch and transformers compute: contexts around a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PretrainedConfig


@contextmanager
def attention_for_any_shape() -> Iterator[None]:
    """Keep PyTorch's SDPA from calling cuDNN, which on recent GPUs is its first choice in bf16 and fp16.

    cuDNN builds a plan for each new shape of a batch. Ours have many: on an H200 most steps of a first epoch took seven times as
    long as the others. PyTorch's other kernels take any shape at once.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def attention_for_fp32(model: nn.Module) -> Iterator[None]:
    """Let a model that was trained with FlashAttention compute with sdpa: FlashAttention takes neither fp32 nor the CPU."""
    configs = [config for module in model.modules() if isinstance(config := getattr(module, "config", None), PretrainedConfig)]
    chosen = [(config, config._attn_implementation) for config in {id(config): config for config in configs}.values()]
    for config, attention in chosen:
        if "flash" in str(attention):
            config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, attention in chosen:  # outer ones first: what is set there is handed down to the inner ones
            config._attn_implementation = attention

"""Contexts that select the attention kernels of PyTorch and transformers during a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PretrainedConfig


@contextmanager
def attention_for_any_shape() -> Iterator[None]:
    """Disable cuDNN attention, which PyTorch's SDPA prefers in bf16 and fp16 on recent GPUs.

    cuDNN builds a plan for each new batch shape, and batches sorted by length have many shapes: on an H200 most steps of the
    first epoch took seven times as long as steps of later epochs. PyTorch's other kernels support any shape without preparation.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def attention_for_fp32(model: nn.Module) -> Iterator[None]:
    """Use sdpa instead of FlashAttention, which supports neither fp32 nor CPUs."""
    with attention_of(model, "sdpa", only="flash"):
        yield


@contextmanager
def attention_of(model: nn.Module, implementation: str, only: str = "") -> Iterator[None]:
    """Use one of transformers' attention implementations.

    Args:
        only: Part of the names of the implementations that are replaced.
    """
    configs = [config for module in model.modules() if isinstance(config := getattr(module, "config", None), PretrainedConfig)]
    before = [(config, config._attn_implementation) for config in {id(config): config for config in configs}.values()]
    for config, attention in before:
        if only in str(attention):
            config._attn_implementation = implementation
    try:
        yield
    finally:
        for config, attention in before:  # outer configurations first, since setting them also sets the inner ones
            config._attn_implementation = attention

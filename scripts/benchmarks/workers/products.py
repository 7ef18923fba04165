"""Measures the speed of matrix products of a model's shapes: the upper limit for a training step."""

import time
from functools import partial
from typing import Any

import torch
from protocol import Channel
from workers.clock import finish_device

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
hidden, inner, tokens = settings["hidden"], settings["inner"], settings["tokens"]
# (columns in, columns out, how often in a layer): query, key, value, output; then the two of the feed-forward part.
SHAPES = [(hidden, hidden, 4), (hidden, inner, 1), (inner, hidden, 1)]


def rate(dtype: torch.dtype, seconds: float) -> float:
    """Return GFLOP/s over one layer's products, from the best half of the repetitions in so many seconds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    new: Any = partial(torch.randn, dtype=dtype, device=device)
    operands = [(new(tokens, a), new(b, a), n) for a, b, n in SHAPES]
    work = sum(2 * tokens * a * b * n for a, b, n in SHAPES)
    taken: list[float] = []
    while sum(taken) < seconds or len(taken) < 4:
        began = time.perf_counter()
        for left, right, times in operands:
            for _ in range(times):
                torch.nn.functional.linear(left, right)
        finish_device()
        taken.append(time.perf_counter() - began)
    best = sorted(taken)[: -(-len(taken) // 2)]
    return work * len(best) / sum(best) / 1e9


def turn(request: dict[str, Any]) -> dict[str, float]:
    with torch.inference_mode():
        return {name: rate(getattr(torch, name), request["seconds"]) for name in ("bfloat16", "float32")}


channel.serve(turn)

"""The states of callbacks in a checkpoint: JSON values in `state.json`, tensors in `callbacks.safetensors`."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from nlp_transfer.training.callbacks import Callback
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import shorten

Tensors = dict[str, torch.Tensor]

TENSOR = "__tensor__"  # {this key: NAME} replaces a tensor in JSON
MAX_DEPTH = 50


def encode_states(callbacks: Mapping[str, Callback]) -> tuple[dict[str, Any], Tensors]:
    """Return the states of callbacks by name, in which names replace the tensors; and the tensors.

    Raises:
        TypeError: a state contains something other than JSON values and tensors.
    """
    tensors: Tensors = {}
    states: dict[str, Any] = {}
    for name, callback in callbacks.items():
        state = callback.state_dict()
        if type(state) is not dict:
            raise TypeError(f"state_dict of callback {name}: found {shorten(state)} ({type(state).__name__}); allowed: a dict")
        states[name] = _encode(state, name, tensors)
    return states, tensors


def decode_state(state: Any, tensors: Tensors) -> Any:
    """Return a state from `encode_states`, with its tensors inserted again."""
    if isinstance(state, list):
        return [decode_state(item, tensors) for item in state]
    if not isinstance(state, dict):
        return state
    return tensors[state[TENSOR]] if TENSOR in state else {key: decode_state(value, tensors) for key, value in state.items()}


def load_states(callbacks: Mapping[str, Callback], states: Mapping[str, Any], tensors: Tensors) -> None:
    """Restore the states of callbacks. Print a warning for each state without a callback and each callback without a state."""
    for name, callback in callbacks.items():
        if name in states:
            callback.load_state_dict(decode_state(states[name], tensors))
        else:
            say(f"warning: callback {name} starts anew: the checkpoint contains no state for it")
    for name in sorted(states.keys() - callbacks.keys()):
        say(f"warning: the checkpoint contains the state of callback {name}, which this run does not have")


def check_states(states: Any, names: Collection[str]) -> None:
    """Check that states refer to exactly the tensors `names`.

    Raises:
        ValueError: a tensor is missing or unused.
    """
    found: list[Any] = []
    _collect(states, found)
    if not all(isinstance(name, str) for name in found) or sorted(found) != sorted(names):
        raise ValueError(f"callbacks: found the tensors {shorten(found)}; allowed: those of callbacks.safetensors, each once")


def _collect(state: Any, found: list[Any]) -> None:
    if isinstance(state, dict) and TENSOR in state:
        found.append(state[TENSOR])
    elif isinstance(state, (dict, list)):
        for value in state.values() if isinstance(state, dict) else state:
            _collect(value, found)


def _encode(value: Any, place: str, tensors: Tensors, depth: int = 0) -> Any:
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized and not value.is_complex():
        tensors[place] = value.detach().to("cpu", copy=True).contiguous()
        return {TENSOR: place}
    if type(value) is dict and depth < MAX_DEPTH and TENSOR not in value and all(map(_is_text, value)):
        return {key: _encode(item, f"{place}.{key}", tensors, depth + 1) for key, item in value.items()}
    if type(value) is list and depth < MAX_DEPTH:
        return [_encode(item, f"{place}[{i}]", tensors, depth + 1) for i, item in enumerate(value)]
    if type(value) in (bool, int, float, type(None)) or _is_text(value):
        return value
    raise TypeError(
        f"state_dict of callback {place}: found {shorten(value)} ({type(value).__name__}); allowed: None, numbers, texts, lists, "
        f"dicts with texts as keys (nested at most {MAX_DEPTH} levels deep), and dense tensors"
    )


def _is_text(value: Any) -> bool:
    """Return whether a value is text that UTF-8 can encode."""
    return type(value) is str and not any("\ud800" <= character <= "\udfff" for character in value)

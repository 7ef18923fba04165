"""Split the encoder of a model at a layer, and run only the layers up to it or only what follows.

Both parts run through the family's `forward`, because families differ in how they build positions, masks and relative biases.
During such a pass, functions that return known hidden states replace the layers that are not needed. Modules, parameter names and
hooks do not change, so optimizers, PEFT, DistributedDataParallel and saving are not affected.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nlp_transfer.models.layers import find_layers

Forward = Callable[..., Any]


class Backbone:
    """The encoder of a model with a head, and the stack of its layers.

    Raises:
        UserError: the model has no recognizable stack of layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.encoder: Any = getattr(model, str(model.base_model_prefix))
        self.layers: list[nn.Module] = list(model.get_submodule(find_layers(model).prefix))  # type: ignore[call-overload]
        self._as_output: Callable[[torch.Tensor], Any] | None = None
        """Converts hidden states to the type that layers return. None until a layer has run in `run_from`."""

    def encode_to(self, depth: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Run only the lowest `depth` layers, and return their output: hidden states of shape (rows, tokens, width).

        Args:
            depth: 1 to the number of layers.
            inputs: inputs of the encoder, such as `input_ids` and `attention_mask`.
        """
        outputs: list[Any] = []

        def record(live: Forward) -> Forward:
            def forward(*arguments: Any, **named: Any) -> Any:
                outputs.append(live(*arguments, **named))
                return outputs[-1]

            return forward

        with _replaced([self.layers[depth - 1]], record), _replaced(self.layers[depth:], lambda _: lambda *_, **__: outputs[-1]):
            self.encoder(**inputs)
        return outputs[-1][0] if isinstance(outputs[-1], (tuple, list)) else outputs[-1]

    @contextmanager
    def run_from(self, depth: int, states: torch.Tensor) -> Iterator[None]:
        """Let forward passes of the model skip the lowest `depth` layers inside the context.

        The embeddings still run, because masks and relative positions depend on token ids.

        Args:
            states: the result of `encode_to(depth)` for the same inputs.
        """

        def skip(live: Forward) -> Forward:
            def forward(*arguments: Any, **named: Any) -> Any:
                if self._as_output is None:
                    self._as_output = _same_form(live(*arguments, **named))
                return self._as_output(states)

            return forward

        with _replaced(self.layers[:depth], skip):
            yield

    @contextmanager
    def run_head(self, vectors: torch.Tensor) -> Iterator[None]:
        """Let forward passes of the model skip the encoder, except its pooler, inside the context.

        Args:
            vectors: of shape (rows, width); each row is used as the hidden state of a single token.
        """

        def forward(*_: Any, **__: Any) -> BaseModelOutputWithPooling:
            states = vectors[:, None]
            pooler = getattr(self.encoder, "pooler", None)
            pooled = None if pooler is None else pooler(states[:, 0] if isinstance(pooler, nn.Linear) else states)
            if isinstance(pooler, nn.Linear):  # ALBERT's pooler, whose activation is a separate module
                pooled = self.encoder.pooler_activation(pooled)
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

        with _replaced([self.encoder], lambda _: forward):
            yield


def _same_form(output: Any) -> Callable[[torch.Tensor], Any]:
    """Return a function that converts hidden states to the type of a layer's output: a tensor, or a tuple starting with one."""
    if not isinstance(output, (tuple, list)):
        return lambda states: states
    sequence, others = type(output), [None] * (len(output) - 1)
    return lambda states: sequence([states, *others])


@contextmanager
def _replaced(modules: Iterable[nn.Module], make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Replace the `forward` method of each module with `make(forward)` inside the context."""
    before = {module: vars(module).get("forward") for module in modules}
    for module in before:
        module.forward = make(module.forward)
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward

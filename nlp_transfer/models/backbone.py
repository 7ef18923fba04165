"""Split the encoder of a model at a layer: run the layers up to it alone, or all that follows alone.

Both are passes of the family's `forward`, because each family builds positions, masks and relative biases in its own way. The
layers that such a pass does not need are replaced while it runs, by functions that return known states. Modules, parameter names
and hooks do not change, so optimizers, PEFT, DistributedDataParallel and saving are not affected.
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
        """Puts hidden states into the form that layers return; None: not known yet."""

    def encode_to(self, depth: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the hidden states of shape (rows, tokens, width) that leave the lowest `depth` layers; no other layer runs.

        Args:
            depth: 1 to the number of layers.
            inputs: of the encoder, such as `input_ids` and `attention_mask`.
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
        """Let passes of the model start above the lowest `depth` layers, which do not run.

        Embeddings run as usual: masks and relative positions depend on token ids.

        Args:
            states: what `encode_to(depth)` returned for the same inputs.
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
        """Let passes of the model start after the encoder; its pooler still runs.

        Args:
            vectors: of shape (rows, width), used as the hidden state of a single token.
        """

        def forward(*_: Any, **__: Any) -> BaseModelOutputWithPooling:
            states = vectors[:, None]
            pooler = getattr(self.encoder, "pooler", None)
            pooled = None if pooler is None else pooler(states[:, 0] if isinstance(pooler, nn.Linear) else states)
            if isinstance(pooler, nn.Linear):  # ALBERT's, whose activation is another module
                pooled = self.encoder.pooler_activation(pooled)
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

        with _replaced([self.encoder], lambda _: forward):
            yield


def _same_form(output: Any) -> Callable[[torch.Tensor], Any]:
    """Return a function that puts hidden states into the form of a layer's output, which is a tensor or starts with one."""
    if not isinstance(output, (tuple, list)):
        return lambda states: states
    sequence, others = type(output), [None] * (len(output) - 1)
    return lambda states: sequence([states, *others])


@contextmanager
def _replaced(modules: Iterable[nn.Module], make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Replace the `forward` methods of modules by functions made from them."""
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

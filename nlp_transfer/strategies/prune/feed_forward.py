"""The feed-forward blocks of an encoder: find them, measure the importance of their neurons, and remove neurons.

McCarley et al. 2019, "Structured Pruning of a BERT-based Question Answering Model", 1910.06360; the measure follows Michel et al.
2019, "Are Sixteen Heads Really Better than One?", 1905.10650.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import prune_linear_layer

from nlp_transfer.data.tokens import TokenTable, model_inputs, to_device
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.layers import change_encoder_config, encoder_config, encoder_type, find_layers
from nlp_transfer.models.preparation import autocast
from nlp_transfer.tasks import Objective
from nlp_transfer.utils.console import Steps
from nlp_transfer.utils.errors import UserError

BATCH = 32
# Names inside a layer: the output projection of a feed-forward block, and the projections that compute its neurons.
PROJECTIONS = {
    "output.dense": ("intermediate.dense",),  # BERT, RoBERTa, ELECTRA, DeBERTa, MPNet and more
    "ffn.lin2": ("ffn.lin1",),  # DistilBERT
    "ffn_output": ("ffn",),  # ALBERT
    "mlp.Wo": ("mlp.Wi",),  # ModernBERT; neurons and gates in one matrix
    "mlp.down_proj": ("mlp.gate_proj", "mlp.up_proj"),  # NomicBERT, EuroBERT
    "mlp.fc2": ("mlp.fc1",),  # Jina
}
SIZES = ("intermediate_size", "hidden_dim")  # configuration fields with the number of neurons; the second one in DistilBERT


@dataclass(frozen=True)
class FeedForward:
    """A feed-forward block, by the module paths of its linear layers in the model.

    Attributes:
        inner: the layers that compute the neurons. In gated blocks, their outputs are the neurons, then as many gates.
        outer: the layer that reads the neurons.
        neurons: number of neurons.
    """

    inner: tuple[str, ...]
    outer: str
    neurons: int


def find_feed_forward(model: PreTrainedModel) -> list[FeedForward]:
    """Return the feed-forward blocks with separate weights, in order.

    Raises:
        UserError: They cannot be identified, or the number of neurons is not a field of the configuration.
    """
    prefix, modules = find_layers(model).prefix, dict(model.named_modules())
    blocks = []
    for path in modules:
        for outer, inner in PROJECTIONS.items():
            base = path.removesuffix(outer)
            names = tuple(base + name for name in inner)
            if path.startswith(f"{prefix}.") and path.endswith(f".{outer}") and all(name in modules for name in names):
                outputs = [getattr(modules[name], "out_features", 0) for name in (*names, path)]
                neurons = getattr(modules[path], "in_features", 0)
                if all(isinstance(modules[name], nn.Linear) for name in (*names, path)) and outputs[0] in (neurons, 2 * neurons):
                    blocks.append(FeedForward(names, path, neurons))
    sizes = {block.neurons for block in blocks}
    field = _size_field(model)
    complete = len(blocks) > 0 and len(blocks) % len(list(model.get_submodule(prefix).children())) == 0
    if not complete or field is None or sizes != {getattr(encoder_config(model.config), field)}:
        raise UserError(
            f"strategy.name: found prune; the feed-forward layers of {encoder_type(model.config)} models cannot be identified; "
            "allowed: families such as bert, roberta, distilbert, electra, deberta-v2, mpnet, albert and modernbert, or the "
            "strategy distill with student_layers"
        )
    return blocks


def _size_field(model: PreTrainedModel) -> str | None:
    """Return the configuration field with the number of neurons."""
    config = encoder_config(model.config).to_dict()
    return next((name for name in SIZES if name in config), None)


def neuron_importance(
    model: PreTrainedModel,
    blocks: Sequence[FeedForward],
    objective: Objective,
    table: TokenTable,
    rows: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Return the importance of each neuron: the sum over rows of |dL / dm|, where the factor m = 1 multiplies the neuron.

    L is the loss of one row, and m is the same for all tokens of the row. To first order, |dL / dm| is the change of the loss
    if the neuron is removed. The model is in evaluation mode, and computes in fp32.

    Args:
        rows: Indices of rows of the table, int64 of shape (n,).

    Returns:
        float64 of shape (blocks, neurons).
    """
    model.eval().to(device)
    totals = np.zeros((len(blocks), blocks[0].neurons))
    batches = [rows[batch] for batch in inference_batches(table.side_lengths[rows], BATCH)]
    masks: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for block in blocks:
            hook = model.get_submodule(block.outer).register_forward_pre_hook(partial(_multiply, masks, block.outer))
            stack.callback(hook.remove)
        progress = stack.enter_context(Steps("measuring the importance of neurons", len(batches)))
        for selected in batches:
            batch = to_device(table.batch(selected), device)
            for block in blocks:  # rows are independent, so one backward pass gives the gradient of each row
                masks[block.outer] = torch.ones(len(selected), 1, block.neurons, device=device, requires_grad=True)
            with autocast(device, "fp32"):
                losses: Mapping[str, torch.Tensor] = objective.loss(model(**model_inputs(batch)), batch)
                gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(masks.values()))
            totals += np.stack([gradient.abs().sum((0, 1)).double().cpu().numpy() for gradient in gradients])
            progress.advance()
    return totals


def _multiply(masks: Mapping[str, torch.Tensor], name: str, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Multiply the neurons, of shape (rows, tokens, neurons), by the mask of their block."""
    return (inputs[0] * masks[name], *inputs[1:])


def most_important(importance: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the most important neurons of each block in ascending order, int64 of shape (blocks, count)."""
    return np.sort(np.argsort(-importance, axis=1, kind="stable")[:, :count], axis=1)


def keep_neurons(model: PreTrainedModel, blocks: Sequence[FeedForward], kept: np.ndarray) -> None:
    """Remove all neurons except those in `kept` from the model, in place, and update the configuration.

    Args:
        kept: Indices of the neurons of each block, int64 of shape (blocks, n).
    """
    for block, neurons in zip(blocks, kept, strict=True):
        index = torch.from_numpy(neurons)
        for name in block.inner:
            layer: Any = model.get_submodule(name)
            gated = torch.cat([index, index + block.neurons]) if layer.out_features == 2 * block.neurons else index
            model.set_submodule(name, prune_linear_layer(layer, gated))  # type: ignore[arg-type]
        outer: Any = model.get_submodule(block.outer)
        model.set_submodule(block.outer, prune_linear_layer(outer, index, dim=1))  # type: ignore[arg-type]
    field = _size_field(model)
    change_encoder_config(model, lambda config: setattr(config, str(field), kept.shape[1]))

"""Heads of a single layer that are computed, not trained: fitted on what the layer sees of each row."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.layers import has_decoder, new_parameters
from nlp_transfer.models.preparation import freeze
from nlp_transfer.utils.errors import UserError


def last_linear(model: Any, setting: str) -> nn.Linear:
    """The layer that makes the logits.

    Raises:
        UserError: the head has hidden layers, which nothing would have trained. `setting` says what asks for a single one.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if getattr(model.config, "hidden", None):
        raise UserError(
            f"{setting}, which fits a single layer, beside task.head.hidden {model.config.hidden}; allowed: no hidden layers"
        )
    last = {id(parameter) for parameter in layers[-1].parameters()}
    new = new_parameters(model)
    inner = [name for name, parameter in model.named_parameters() if name in new and id(parameter) not in last]
    if inner:
        raise UserError(
            f"{setting}, which fits a single layer; below it {inner[0]} is new to the checkpoint and would stay at random; "
            "allowed: task.head: null, which has a single layer"
        )
    return layers[-1]


def fix_for_computed_head(model: PreTrainedModel, setting: str) -> None:
    """Fixes everything, where a last layer can be computed whose answers are labels.

    Raises:
        UserError: the answer is a text or a number, or the head is not a single layer that nothing else has to be trained for.
    """
    if has_decoder(model) or model.config.problem_type == "regression":
        answer = "texts" if has_decoder(model) else "numbers"
        raise UserError(f"{setting} beside answers that are {answer}; allowed: a task with labels")
    last_linear(model, setting)
    freeze(model, {name for name, _ in model.named_parameters()})


def layer_inputs(model: nn.Module, layer: nn.Module, table: TokenTable, batch_size: int = 256) -> np.ndarray:
    """float32 of shape (rows, width): what the layer sees of each row, in evaluation mode."""
    device = next(model.parameters()).device
    found: list[np.ndarray] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].float().cpu().numpy()))
    batches = inference_batches(table.side_lengths, batch_size)
    model.eval()
    try:
        with torch.inference_mode():
            for rows in batches:
                model(**{name: tensor.to(device) for name, tensor in model_inputs(table.batch(rows)).items()})
    finally:
        handle.remove()
    values = np.empty((len(table), found[0].shape[-1]), np.float32)
    values[np.concatenate(batches)] = np.concatenate(found)
    return values


def set_layer(layer: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    """Puts in weights of shape (labels, width) and a bias of shape (labels,).

    Where the layer has no bias of its own it gets none, which is right only if the bias is the same for all labels.
    """
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))


def fit_logistic_regression(model: nn.Module, table: TokenTable, regularization: float = 1.0) -> None:
    """Fits the last layer by scikit-learn's logistic regression; for several labels a row one for each label."""
    from sklearn.linear_model import LogisticRegression

    layer = last_linear(model, "strategy.classifier: found logistic_regression")
    inputs, labels = layer_inputs(model, layer, table).astype(np.float64), table.dense["labels"]

    def fit(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = LogisticRegression(C=1 / regularization, max_iter=2000).fit(inputs, wanted)
        return fitted.coef_, fitted.intercept_

    if labels.ndim == 2:
        none = np.zeros((1, inputs.shape[1]))  # a label that all rows have, or none of them
        parts = [
            fit(column.astype(int)) if 0 < column.sum() < len(column) else (none, np.array([1e4 if column[0] else -1e4]))
            for column in labels.T
        ]
        set_layer(layer, np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        return
    weight, bias = fit(labels)
    known = np.unique(labels)
    if len(known) == 2 and len(weight) == 1:  # two classes have one vector; half of it each way gives the same probabilities
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    whole = np.zeros((layer.out_features, layer.in_features)), np.full(layer.out_features, -1e4)  # a class without rows: never
    whole[0][known], whole[1][known] = weight, bias
    set_layer(layer, *whole)

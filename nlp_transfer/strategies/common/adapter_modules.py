"""Adapters: select the modules to adapt and those to train completely, and add and save adapters."""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import HEAD
from nlp_transfer.models.layers import Layers, encoder_type, has_decoder, linear_layers
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.utils.atomic_files import replacing_folder, write_bytes
from nlp_transfer.utils.errors import UserError, did_you_mean

PEFT_TASKS = {"TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS"}  # by the end of the model's class name
ATTENTION = re.compile(r"(query|key|value|_proj|q_lin|k_lin|v_lin|attn\.[qkv]|Wqkv|Attention\.[qkv])$")


def add_adapter(model: PreTrainedModel, config: Any) -> Any:
    """Add the adapter that a peft configuration describes. Tied parameters stay tied."""
    from peft import TaskType, get_peft_model

    head = HEAD.search(type(model).__name__)
    config.task_type = (
        TaskType.SEQ_2_SEQ_LM if has_decoder(model) else TaskType[PEFT_TASKS.get(head[1] if head else "", "SEQ_CLS")]
    )
    tied = tied_parameters(model)
    adapted: Any = get_peft_model(model, config)
    restore_ties(adapted.get_base_model(), tied)
    return adapted


def chosen_layers(model: nn.Module, layers: Layers, requested: str | Sequence[str], place: str) -> list[str]:
    """Return the names of the linear modules to adapt, relative to their layer.

    Args:
        requested: `all`, `attention` (queries, keys and values), or names.
        place: The setting that contains `requested`, for messages.

    Raises:
        UserError: If the layers have no linear module with a requested name.
    """
    known = list(linear_layers(model, layers))
    if not known:
        raise UserError(
            f"strategy: the layers of a {encoder_type(model.config)} model have no linear module that could be adapted; allowed: "
            "strategies without adapters, such as full or partial"
        )
    if isinstance(requested, str):
        return [name for name in known if requested == "all" or ATTENTION.search(name)]
    for suffix in requested:
        if not any(name == suffix or name.endswith("." + suffix) for name in known):
            raise UserError(
                f"{place}: the layers have no linear module {suffix!r}{did_you_mean(suffix, known)}; known: {', '.join(known)}"
            )
    return [name for name in known for suffix in requested if name == suffix or name.endswith("." + suffix)]


def module_pattern(layers: Layers, chosen: Iterable[str], numbers: Iterable[int] | None = None) -> str:
    """Return a regular expression that matches the full paths of the chosen modules, but no module of the head.

    Args:
        numbers: Indices of the layers to match. None: all layers.
    """
    stacks = "|".join(map(re.escape, layers.stacks))
    number = r"\d+" if numbers is None else f"({'|'.join(map(str, numbers))})"
    return rf"({stacks})\.{number}\.({'|'.join(re.escape(name) for name in chosen)})"


def last_of_layers(model: nn.Module, layers: Layers) -> set[str]:
    """Return the name, relative to its layer, of the last linear module of each layer: the output of the feed-forward block."""
    last: dict[str, str] = {}
    for name, module in model.named_modules():
        stack = next((stack for stack in layers.stacks if name.startswith(stack + ".")), None)
        if isinstance(module, nn.Linear) and stack:
            number, _, inner = name.removeprefix(stack + ".").partition(".")
            last[f"{stack}.{number}"] = inner
    return set(last.values())


def norm_pattern(model: nn.Module, layers: Layers) -> str:
    """Return a regular expression for the paths of all normalization modules, whose names may differ between layers."""
    stacks = tuple(f"{stack}." for stack in layers.stacks)
    inside = [
        name
        for name, module in model.named_modules()
        if name.startswith(stacks) and "norm" in type(module).__name__.lower() and list(module.parameters())
    ]
    return "|".join(map(re.escape, inside))


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter without the base model."""
    with replacing_folder(folder) as target:
        model.save_pretrained(str(target))  # without config.json: loaders would expect a complete model
        (target / "README.md").unlink(missing_ok=True)  # peft's template, replaced by the model card
        settings = clean(json.loads((target / "adapter_config.json").read_text(encoding="utf-8")))
        if Path(settings["base_model_name_or_path"] or "").exists():
            settings["base_model_name_or_path"] = None  # local paths are private, and invalid on other machines
        write_bytes(target / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True).encode())


def can_merge(model: Any) -> bool:
    """Return whether peft can merge the adapter into the weights. This is tested on a copy of one layer."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    if not isinstance(model.base_model, BaseTuner):
        return False
    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    if layer is None:
        return False
    try:
        copy.deepcopy(layer).merge()
    except Exception:  # the exception type depends on the method
        return False
    return True


def modules_to_save(model: nn.Module, layers: Layers) -> list[str]:
    """Return the paths of the modules to train completely: the pooler and the head, or a new decoder.

    A pretrained pooler is included, since it was trained for another purpose. A new decoder is returned as the paths of its
    children: peft matches the ends of paths, so the path `decoder` would also match a submodule of that name in a BERT decoder.
    """
    if layers.decoder:
        return []
    owners: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and layers.depth_of(name) > layers.depth:
            inside = name.startswith(layers.encoder + ".")
            path = name.split(".")
            owner = name.rpartition(".")[0] if inside else ".".join(path[:2] if path[0] == "decoder" else path[:1])
            if owner not in owners:
                owners.append(owner)
    return owners


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Return, for each tied parameter, all of its names, such as those of the input and output embeddings of a decoder."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def restore_ties(model: nn.Module, tied: list[list[str]]) -> None:
    """Restore the ties that peft broke when it copied the modules in `modules_to_save`."""
    for first, *others in tied:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            first_owner, _, first_attribute = first.rpartition(".")
            parameter = getattr(_trainable_module(model, first_owner), first_attribute)
            setattr(_trainable_module(model, owner), attribute, parameter)


def _trainable_module(model: Any, path: str) -> Any:
    """Return the module at a path, or its trainable copy if peft has made one."""
    for name in path.split("."):
        model = getattr(model, name)
        if hasattr(model, "modules_to_save"):
            model = model.modules_to_save["default"]
    return model

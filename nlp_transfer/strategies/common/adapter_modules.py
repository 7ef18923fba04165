"""What strategies that put adapters beside pretrained weights share: where they are put, what is kept whole, saving."""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import Layers, encoder_type, has_decoder, linear_layers
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.utils.atomic_files import replacing_folder, write_bytes
from nlp_transfer.utils.errors import UserError, did_you_mean

ATTENTION = re.compile(r"(query|key|value|_proj|q_lin|k_lin|v_lin|attn\.[qkv]|Wqkv|Attention\.[qkv])$")


def adapt(model: PreTrainedModel, config: Any) -> Any:
    """The model below the adapter that a peft configuration describes; what was tied stays tied.

    Raises:
        UserError: the model has only some of its checkpoint's layers.
    """
    from peft import TaskType, get_peft_model

    if setting := getattr(model, "shortened_by", None):
        raise UserError(
            f"{setting}: an adapter belongs on a whole checkpoint, and this model has a part of its layers; allowed beside lora "
            "and peft: null"
        )
    config.task_type = TaskType.SEQ_2_SEQ_LM if has_decoder(model) else TaskType.SEQ_CLS
    tied = tied_parameters(model)
    adapted: Any = get_peft_model(model, config)
    tie_again(adapted.get_base_model(), tied)
    return adapted


def chosen_layers(model: nn.Module, layers: Layers, wanted: str | Sequence[str], place: str) -> list[str]:
    """Linear modules relative to their layer: `all`, `attention` (those that make queries, keys and values), or those named.

    Raises:
        UserError: the layers have no module of a name; `place` is the setting that the message names.
    """
    known = list(linear_layers(model, layers))
    if not known:
        raise UserError(
            f"strategy: the layers of a {encoder_type(model.config)} model hold no linear module that could be adapted; allowed: "
            "strategies without adapters, such as full or partial"
        )
    if isinstance(wanted, str):
        return [name for name in known if wanted == "all" or ATTENTION.search(name)]
    for asked in wanted:
        if not any(name == asked or name.endswith("." + asked) for name in known):
            raise UserError(
                f"{place}: the layers have no linear module {asked!r}{did_you_mean(asked, known)}; known: {', '.join(known)}"
            )
    return [name for name in known for asked in wanted if name == asked or name.endswith("." + asked)]


def pattern(layers: Layers, chosen: Iterable[str], numbers: Iterable[int] | None = None) -> str:
    """A pattern of full module paths, so that no layer of the head with the same name is adapted by mistake.

    `numbers` are the layers that it is about; None: all.
    """
    stacks = "|".join(map(re.escape, layers.stacks))
    which = r"\d+" if numbers is None else f"({'|'.join(map(str, numbers))})"
    return rf"({stacks})\.{which}\.({'|'.join(re.escape(name) for name in chosen)})"


def last_of_layers(model: nn.Module, layers: Layers) -> set[str]:
    """The last linear module of a layer, relative to it: in every family that with which the feed-forward part ends."""
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        stack = next((stack for stack in layers.stacks if name.startswith(stack + ".")), None)
        if isinstance(module, nn.Linear) and stack:
            number, _, inner = name.removeprefix(stack + ".").partition(".")
            found[f"{stack}.{number}"] = inner
    return set(found.values())


def norms(model: nn.Module, layers: Layers) -> str:
    """A pattern of the paths of the layers' normalisation modules; one layer may lack what another has."""
    stacks = tuple(f"{stack}." for stack in layers.stacks)
    inside = [
        name
        for name, module in model.named_modules()
        if name.startswith(stacks) and "norm" in type(module).__name__.lower() and list(module.parameters())
    ]
    return "|".join(map(re.escape, inside))


def save_adapter(model: Any, folder: Path) -> None:
    """Writes the adapter alone into `folder`."""
    with replacing_folder(folder) as part:
        model.save_pretrained(str(part))  # no config.json: beside an adapter it would make loaders take it for a model
        (part / "README.md").unlink(missing_ok=True)  # peft's template; the run's card describes the adapter
        settings = clean(json.loads((part / "adapter_config.json").read_text(encoding="utf-8")))
        if Path(settings["base_model_name_or_path"] or "").exists():
            settings["base_model_name_or_path"] = None  # a path on this machine means nothing, and tells something, elsewhere
        write_bytes(part / "adapter_config.json", json.dumps(settings, indent=2, sort_keys=True).encode())


def can_merge(model: Any) -> bool:
    """Whether peft can merge the adapter into the weights: one of its layers is tried, in a copy."""
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

    if not isinstance(model.base_model, BaseTuner):
        return False
    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    if layer is None:
        return False
    try:
        copy.deepcopy(layer).merge()
    except Exception:  # each method says no in its own way
        return False
    return True


def modules_to_save(model: nn.Module, layers: Layers) -> list[str]:
    """Paths of the smallest set of modules that hold the pooler and the head, new or not, or a decoder that is new.

    A pooler that comes with a checkpoint was trained for another purpose, if at all: fixed, it costs accuracy. Of a decoder
    its parts are named: peft goes by the end of a path, and inside a BERT decoder something is called `decoder` too.
    """
    if layers.decoder:
        return []
    owners: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and layers.depth_of(name) > layers.depth:
            inside = name.startswith(layers.encoder + ".")
            parts = name.split(".")
            owner = name.rpartition(".")[0] if inside else ".".join(parts[:2] if parts[0] == "decoder" else parts[:1])
            if owner not in owners:
                owners.append(owner)
    return owners


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same, such as a decoder's input and output embeddings."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [same for same in names.values() if len(same) > 1]


def tie_again(model: nn.Module, tied: list[list[str]]) -> None:
    """peft copies each module that is kept whole by itself, and so would train, and save, two versions of what was one."""
    for first, *others in tied:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(
                _trained(model, owner), attribute, getattr(_trained(model, first.rpartition(".")[0]), first.rpartition(".")[2])
            )


def _trained(model: Any, path: str) -> Any:
    """The module at a path, in the copy that is trained where peft made one."""
    for part in path.split("."):
        model = getattr(model, part)
        if hasattr(model, "modules_to_save"):
            model = model.modules_to_save["default"]
    return model

"""LoRA: pretrained weights stay fixed, and low-rank updates of the linear layers are trained beside them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", 2106.09685. All linear layers are adapted by default,
which Dettmers et al. 2023, 2305.14314, found to matter more than the rank.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.config import Count, Share
from nlp_transfer.errors import UserError, did_you_mean
from nlp_transfer.models import Layers, find_layers, has_decoder, has_new_decoder, linear_layers, width
from nlp_transfer.strategies import DECODER_SCALE, Strategy

ATTENTION = re.compile(r"(query|key|value|_proj|q_lin|k_lin|v_lin|attn\.[qkv]|Wqkv|Attention\.[qkv])$")


class Lora(Strategy):
    """Trains low-rank updates and the head. The updates are merged into the model that is saved; they are also saved
    alone, as `adapter/`."""

    chooses_parameters: ClassVar[bool] = True

    r: Count = 16
    """Rank of the updates."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale of the updates, divided by the rank; null: twice the rank."""
    dropout: Share = 0.0
    """Dropout before the updates."""
    target_modules: Literal["all", "attention"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Which linear layers of the encoder are adapted: all, those that make queries, keys and values, or a list of names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained as well."""

    def learning_rate(self, model: nn.Module) -> float:
        """The updates start at zero and bear far larger steps than pretrained weights; a new decoder, trained whole, does not."""
        if has_new_decoder(model):
            return super().learning_rate(model) * DECODER_SCALE
        return 2e-3 if width(model) <= 512 else 5e-4

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Adds the updates.

        The pooler and the head are trained as a whole and kept with the adapter: peft by itself knows only heads called
        `classifier` or `score`, and would leave other new weights fixed at random.
        """
        from peft import LoraConfig, TaskType, get_peft_model

        layers = find_layers(model)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha or 2 * self.r,  # type: ignore[arg-type]  # a fraction works as well
            lora_dropout=self.dropout,
            bias=self.bias,
            target_modules=self._targets(model, layers),
            modules_to_save=modules_to_save(model, layers),
            task_type=TaskType.SEQ_2_SEQ_LM if has_decoder(model) else TaskType.SEQ_CLS,
        )
        tied = tied_parameters(model)
        adapted: Any = get_peft_model(model, config)
        tie_again(adapted.base_model.model, tied)
        return adapted

    def _targets(self, model: nn.Module, layers: Layers) -> str:
        """A pattern of full module paths, so that no layer of the head with the same name is adapted by mistake."""
        known = list(linear_layers(model, layers))
        if isinstance(self.target_modules, list):
            chosen = [name for name in known for wanted in self.target_modules if name == wanted or name.endswith("." + wanted)]
            for wanted in self.target_modules:
                if not any(name == wanted or name.endswith("." + wanted) for name in known):
                    raise UserError(
                        f"strategy.target_modules: the layers have no linear module {wanted!r}{did_you_mean(wanted, known)}; "
                        f"known: {', '.join(known)}"
                    )
        else:
            chosen = [name for name in known if self.target_modules == "all" or ATTENTION.search(name)]
        stacks = "|".join(re.escape(stack) for stack in (layers.prefix, layers.decoder) if stack)
        return rf"({stacks})\.\d+\.({'|'.join(re.escape(name) for name in chosen)})"

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Saves `adapter/` and merges: W + alpha/r * BA in every adapted layer."""
        adapter = folder / "adapter"
        model.save_pretrained(str(adapter))  # no config.json: beside an adapter it would make loaders take it for a model
        (adapter / "README.md").unlink(missing_ok=True)  # peft's template; the run's card describes the adapter
        settings = json.loads((adapter / "adapter_config.json").read_text())
        if Path(settings["base_model_name_or_path"] or "").exists():
            settings["base_model_name_or_path"] = None  # a path on this machine means nothing, and tells something, elsewhere
            (adapter / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True))
        merged: Any = model
        return merged.merge_and_unload()


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

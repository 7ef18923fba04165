"""Any method of the installed peft library, by its name and its own settings.

Among them: IA3 (Liu et al. 2022, 2205.05638), DoRA (LORA with `use_dora`; Liu et al. 2024, 2402.09353), rank-stabilised LoRA
(LORA with `use_rslora`; Kalajdzievski 2023, 2312.03732), LOHA (Hyeon-Woo et al. 2021, 2108.06098), VERA (Kopiczko et al. 2023,
2310.11454), OFT (Qiu et al. 2023, 2306.07280), BOFT (Liu et al. 2023, 2311.06243), FOURIERFT (Gao et al. 2024, 2405.03003),
PROMPT_TUNING (Lester et al. 2021, 2104.08691), P_TUNING (Liu et al. 2021, 2103.10385).

Which methods there are is asked of peft when one is named. Many are weaker than LoRA at encoders of this size, since they
train far less. Prompts most of all: Lester et al. find them on a par with fine-tuning in models of billions of parameters only,
and what they put before a text takes the first token's place in the pooler.
"""

import copy
import dataclasses
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ValidationInfo, field_validator
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import (
    Layers,
    encoder_config,
    encoder_type,
    end_rows,
    find_layers,
    has_decoder,
    has_new_decoder,
    linear_layers,
    merge_adapter,
    width,
)
from nlp_transfer.settings.schema import Document
from nlp_transfer.strategies import Group, Job, Strategy
from nlp_transfer.strategies.common.adapter_modules import (
    adapt,
    can_merge,
    chosen_layers,
    last_of_layers,
    modules_to_save,
    norms,
    pattern,
    save_adapter,
)
from nlp_transfer.strategies.common.layer_depth import DECODER_SCALE
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, did_you_mean

KEY_OR_VALUE = re.compile(r"(key|value|k_proj|v_proj|key_proj|value_proj|k_lin|v_lin|attn\.[kv]|Wqkv|Attention\.[kv])$")
# Starting points, not the best of a search; give `training.learning_rate` where it matters.
RATES = {"IA3": 1e-2, "PROMPT_TUNING": 1e-2, "P_TUNING": 5e-3, "PREFIX_TUNING": 1e-2}
TOLERANCE = 1e-3  # merging rounds; more than this is another model
BEFORE_LAYERS = ("PREFIX_TUNING", "CARTRIDGE")  # what they learn stands before every layer's keys and values
OURS = {"modules_to_save"}  # decided here: the pooler and the head
# Not to be set from a file: they import modules or load what is neither model nor adapter.
FOREIGN = {"tokenizer_kwargs", "megatron_config", "megatron_core"}


class Peft(Strategy):
    """Trains the adapter that `type` names, and the head. It is merged into the model that is saved where peft can do that;
    else the adapter, beside which its base model is needed, is what is saved."""

    chooses_parameters: ClassVar[bool] = True

    type: str = "IA3"
    """A method of the installed peft: IA3, LORA, LOHA, LOKR, OFT, BOFT, VERA, FOURIERFT, LN_TUNING, PROMPT_TUNING ..."""
    settings: Document = {}
    """The method's own settings, by the names that peft gives them; `target_modules` also takes all and attention."""

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        known = sorted(_methods())
        name = value.upper().replace("-", "_")
        if name not in known:
            raise ValueError(f"{', '.join(known)}{did_you_mean(name, known)}")
        return name

    @field_validator("settings")
    @classmethod
    def _are_known(cls, value: Document, info: ValidationInfo) -> Document:
        if (name := info.data.get("type")) is None:
            return value
        known = sorted(_fields(_methods()[name]))
        if unknown := [setting for setting in value if setting not in known]:
            near = did_you_mean(unknown[0], known)
            raise ValueError(f"settings of {name}, which has no {unknown[0]!r}{near}; known: {', '.join(known)}")
        fields = _fields(_methods()[name])
        return {setting: _as_default(given, fields[setting].default) for setting, given in value.items()}

    def learning_rate(self, model: nn.Module) -> float:
        """What trains little bears large steps; for methods that were not measured LoRA's."""
        if has_new_decoder(model):
            return super().learning_rate(model) * DECODER_SCALE
        return RATES.get(self.type, 2e-3 if width(model) <= 512 else 5e-4)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Decay pulls towards zero, which is not where most adapters start: only what is kept whole is decayed."""
        split = []
        for group in groups:
            kept = [name for name in group.names if ".modules_to_save." in name]
            own = [name for name in group.names if ".modules_to_save." not in name]
            split += [dataclasses.replace(group, names=kept), dataclasses.replace(group, names=own, weight_decay=0.0)]
        return split

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Adds the adapter, and tries it: one pass forward and back over a tiny batch.

        Raises:
            UserError: a setting is wrong, a package is missing, or the method does nothing for, or cannot be put on, this model.
        """
        kind = encoder_type(model.config)
        with self._explained(kind):
            adapted = adapt(model, self._config(model))
        if has_decoder(model) and not can_merge(adapted):
            raise UserError(self._not_for_translation())
        with self._explained(kind), torch.random.fork_rng(devices=[]):  # a trial must not change what is drawn after it
            self._try(adapted)
        if not can_merge(adapted):
            say(
                f"{self.type} cannot be merged: what is saved is the adapter alone; loading it needs its base model, peft and "
                "nlp_transfer"
            )
        return adapted

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Raises a UserError where a prompt and the longest text together are longer than the model can read."""
        adapted: Any = model
        prompt = getattr(adapted.active_peft_config, "num_virtual_tokens", None) or 0
        allowed = job.checkpoint.positions - prompt
        if prompt and (job.task.max_length or 0) > allowed:
            raise UserError(
                f"task.max_length: found {job.task.max_length}; allowed: up to {allowed}, since {self.type} puts {prompt} tokens "
                f"before a text and the model reads {job.checkpoint.positions}"
            )
        return job

    @contextmanager
    def _explained(self, kind: str) -> Iterator[None]:
        """Errors from inside peft and the model as the user's: both run here on nothing but what the settings say."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except UserError:
            raise
        except ImportError as error:
            missing = f"the package {error.name}" if error.name else str(error)
            raise UserError(f"strategy.type: {self.type} needs {missing}, which is not installed") from error
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(
                f"strategy: peft cannot put {self.type} with {self.settings or 'its defaults'} on a {kind} model: {reason}"
            ) from error

    def _not_for_translation(self) -> str:
        return f"strategy.type: found {self.type}; it cannot be merged, and translation needs a method that can be, such as LORA"

    def _config(self, model: PreTrainedModel) -> Any:
        layers = find_layers(model)
        schema = _methods()[self.type]
        fields, settings = _fields(schema), copy.deepcopy(self.settings)
        if hasattr(_tuner(self.type), "update_and_allocate") and ("use_asa" not in fields or settings.get("use_asa")):
            raise UserError(
                f"strategy.type: found {self.type}{' with use_asa' if 'use_asa' in fields else ''}; after every step it moves "
                "ranks from one layer to another, by figures that no checkpoint holds; allowed: methods of a fixed size, such as "
                "LORA"
            )
        if "modules_to_save" not in {field.name for field in dataclasses.fields(schema)}:
            raise UserError(
                f"strategy.type: found {self.type}; it keeps no head with the adapter, and a head is new here; allowed: others, "
                "such as LORA"
            )
        if "target_modules" in fields:
            settings |= self._targets(model, layers, "feedforward_modules" in fields)
        if "num_virtual_tokens" in fields:
            if has_decoder(model):
                raise UserError(self._not_for_translation())
            encoder, ahead = encoder_config(model.config), self.type in BEFORE_LAYERS
            if not hasattr(model.config.get_text_config(), "vocab_size"):
                raise UserError(
                    f"strategy.type: found {self.type}; peft puts prompts before the families' own models alone; allowed with "
                    "this head: methods that change layers, such as IA3"
                )
            settings = {
                "num_virtual_tokens": 20,
                "token_dim": width(model) if ahead else _embeddings(model).embedding_dim,
                "num_layers": encoder.num_hidden_layers,
                "num_attention_heads": encoder.num_attention_heads,
            } | settings
        if "progressbar" in fields:
            settings.setdefault("progressbar", False)
        for name in {"block_size", "group_size", "vector_length"} & set(fields):  # must divide the widths of the layers
            divided = math.gcd(*(size for inner in linear_layers(model, layers) for size in _shape(model, inner)))
            settings.setdefault(name, max(n for n in range(1, fields[name].default + 1) if divided % n == 0))
        return schema(**settings, modules_to_save=modules_to_save(model, layers))

    def _targets(self, model: PreTrainedModel, layers: Layers, has_feedforward: bool) -> Document:
        """`target_modules` and what goes with it, as patterns of full paths."""
        place = "strategy.settings.target_modules"
        wanted, numbers = self.settings.get("target_modules"), self.settings.get("layers_to_transform")
        known = list(linear_layers(model, layers))
        feedforward = last_of_layers(model, layers)
        if isinstance(wanted, str) and wanted not in ("all", "all-linear", "attention"):
            return {}  # a pattern of the user's own
        if wanted is not None:
            chosen = chosen_layers(model, layers, "all" if wanted == "all-linear" else wanted, place)
        elif has_feedforward:  # IA3: keys, values and what the feed-forward part hands on
            chosen = [name for name in known if KEY_OR_VALUE.search(name) or name in feedforward] or known
        else:
            chosen = known
        found: Document = {}
        if numbers is not None:
            numbers = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
            depth = layers.lower or layers.depth  # with two stacks, numbers count within each
            if outside := [n for n in numbers if not isinstance(n, int) or not 0 <= n < depth]:
                raise UserError(
                    f"strategy.settings.layers_to_transform: found {outside[0]!r}; allowed: 0 to {depth - 1}, the layers "
                    "of this model"
                )
            found |= {"layers_to_transform": None, "layers_pattern": None}
        if wanted is None and self.type == "LN_TUNING":
            return {"target_modules": norms(model, layers)}
        if has_feedforward and "feedforward_modules" not in self.settings:
            found["feedforward_modules"] = pattern(layers, [name for name in chosen if name in feedforward] or ["-"], numbers)
        return found | {"target_modules": pattern(layers, chosen, numbers)}

    def _try(self, adapted: Any) -> None:
        """Raises an error where a pass over a tiny batch fails, or where nothing of the adapter learns from it."""
        training = adapted.training
        parameters = {name: p for name, p in adapted.named_parameters() if p.requires_grad and ".modules_to_save." not in name}
        logits = _answers(adapted)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        (logits * weights).sum().backward()
        learning = [name for name, p in parameters.items() if p.grad is not None and bool(p.grad.abs().max() > 0)]
        adapted.zero_grad(set_to_none=True)
        adapted.train(training)
        if not learning:
            raise ValueError("the model takes no notice of the adapter, which therefore would learn nothing")

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Saves `adapter/`, and merges where the method allows it; else the model stays as it is.

        Raises:
            RuntimeError: merged, the model answers otherwise.
        """
        save_adapter(model, folder / "adapter")
        if not can_merge(model):
            return model
        adapted: Any = model
        with torch.inference_mode():
            before = _answers(adapted)
        merged = merge_adapter(adapted)
        with torch.inference_mode():
            difference = float((before - _answers(merged)).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
            raise RuntimeError(f"{self.type}: merged, the model's logits differ by {difference}")
        return merged


def _methods() -> dict[str, Any]:
    """The configurations that the installed peft knows, by name."""
    import peft  # noqa: F401  # registers them
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value: schema for kind, schema in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _fields(schema: Any) -> dict[str, Any]:
    """The fields of a method's configuration that are the user's."""
    from peft import PeftConfig

    common = {field.name for field in dataclasses.fields(PeftConfig)}
    return {field.name: field for field in dataclasses.fields(schema) if field.init and field.name not in common | OURS | FOREIGN}


def _as_default(value: Any, default: Any) -> Any:
    """Text that spells a number, as YAML leaves 1e-4, as a number where the default is one."""
    if not isinstance(value, str) or isinstance(default, bool) or not isinstance(default, (int, float)):
        return value
    try:
        return type(default)(value)
    except ValueError:  # peft says what is wrong
        return value


def _tuner(name: str) -> Any:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils.peft_types import PeftType

    return PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType(name))


def _shape(model: nn.Module, inner: str) -> tuple[int, ...]:
    return next(tuple(module.weight.shape) for name, module in model.named_modules() if name.endswith(f".{inner}"))


def _embeddings(model: Any) -> nn.Embedding:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder = whole.get_encoder() if has_decoder(whole) else getattr(whole, whole.base_model_prefix)
    found: nn.Embedding = encoder.get_input_embeddings()
    return found


def _answers(model: Any) -> torch.Tensor:
    """Logits for a tiny batch of which one row is padded. The model is left in evaluation mode."""
    words = _embeddings(model).num_embeddings
    device = next(model.parameters()).device
    ids = torch.randint(min(5, words - 1), words, (2, 6), generator=torch.Generator().manual_seed(0)).to(device)
    ids = end_rows(model, ids, 3)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if has_decoder(model):
        inputs["decoder_input_ids"] = ids
    found: torch.Tensor = model.eval()(**inputs).logits
    return found.float().cpu()

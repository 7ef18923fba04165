"""PEFT: any method of the installed peft library.

When to use it: to try parameter-efficient methods other than LoRA (LoRA has a separate strategy). Methods include IA3
(Liu et al. 2022, 2205.05638), DoRA (LORA with `use_dora`; Liu et al. 2024, 2402.09353), rank-stabilized LoRA (LORA with
`use_rslora`; Kalajdzievski 2023, 2312.03732), LOHA (Hyeon-Woo et al. 2021, 2108.06098), VERA (Kopiczko et al. 2023,
2310.11454), OFT (Qiu et al. 2023, 2306.07280), BOFT (Liu et al. 2023, 2311.06243), FOURIERFT (Gao et al. 2024, 2405.03003),
PROMPT_TUNING (Lester et al. 2021, 2104.08691) and P_TUNING (Liu et al. 2021, 2103.10385).

Cost: at most that of LoRA. Many methods are less accurate than LoRA with small encoders, since they train far fewer parameters.
Prompt methods are the least accurate: according to Lester et al. they match fine-tuning only in models with billions of
parameters, and in encoders the pooler reads the first prompt token instead of the first token of the text.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationInfo, field_validator
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import encoder_type, has_decoder, output_logits, place_end_tokens
from nlp_transfer.models.preparation import merge_adapter
from nlp_transfer.models.verification.adapter_settings import pattern_problem
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.strategies import Group, Job, Strategy, StrategyTraits
from nlp_transfer.strategies.common.adapter_modules import add_adapter, can_merge, save_adapter
from nlp_transfer.strategies.common.layer_depth import adapter_rate
from nlp_transfer.strategies.peft.method_settings import (
    input_embeddings,
    make_config,
    methods,
    not_for_generation,
    to_type_of,
    user_fields,
)
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, did_you_mean

# Reasonable defaults, not tuned.
LEARNING_RATES = {"IA3": 1e-2, "PROMPT_TUNING": 1e-2, "P_TUNING": 5e-3, "PREFIX_TUNING": 1e-2}
TOLERANCE = 1e-3  # maximum relative difference between the logits before and after merging; smaller ones are due to rounding


class Peft(Strategy):
    """Train the adapter of a peft method, and the head.

    The adapter is merged into the saved model if peft can merge it. Otherwise only the adapter is saved, and loading it requires
    the base model.
    """

    type: str = "IA3"
    """A method of the installed peft: IA3, LORA, LOHA, LOKR, OFT, BOFT, VERA, FOURIERFT, LN_TUNING, PROMPT_TUNING, ..."""
    settings: Document = {}
    """Settings of the method, with the same names as in peft. `target_modules` can also be `all` or `attention`."""

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        known = sorted(methods())
        name = value.upper().replace("-", "_")
        if name not in known:
            raise ValueError(f"{', '.join(known)}{did_you_mean(name, known)}")
        return name

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, value: Document, info: ValidationInfo) -> Document:
        if (method := info.data.get("type")) is None:
            return value
        fields = user_fields(methods()[method])
        known = sorted(fields)
        if unknown := [name for name in value if name not in fields]:
            near = did_you_mean(unknown[0], known)
            raise ValueError(f"settings of {method}, which has no {unknown[0]!r}{near}; known: {', '.join(known)}")
        for name in ("target_modules", "feedforward_modules", "exclude_modules"):
            pattern = value.get(name)
            # This check is repeated when a saved adapter is loaded.
            if isinstance(pattern, str) and (allowed := pattern_problem(pattern)):
                raise ValueError(f"for {name}: {allowed}")
        return {name: to_type_of(fields[name].default, setting) for name, setting in value.items()}

    @property
    def traits(self) -> StrategyTraits:
        return StrategyTraits(owns_parameters=True, adds_adapter=True, learning_rate=self._learning_rate)

    def _learning_rate(self, model: nn.Module) -> float:
        """Return a high rate for methods with few parameters, and the rate of LoRA for others. For a new decoder, it is lower."""
        rate = LEARNING_RATES.get(self.type)
        return adapter_rate(model, rate, rate) if rate else adapter_rate(model)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Apply weight decay only to the head. It would pull adapters to zero, although most of them do not start at zero."""
        split = []
        for group in groups:
            head = [name for name in group.names if ".modules_to_save." in name]
            adapter = [name for name in group.names if ".modules_to_save." not in name]
            split += [dataclasses.replace(group, names=head), dataclasses.replace(group, names=adapter, weight_decay=0.0)]
        return split

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Add the adapter, and test it with one forward and backward pass.

        Raises:
            UserError: If a setting is invalid, a package is missing, or the method does not work with this model.
        """
        kind = encoder_type(model.config)
        with self._user_errors(kind):
            adapted = add_adapter(model, make_config(self.type, self.settings, model))
        if has_decoder(model) and not can_merge(adapted):
            raise UserError(not_for_generation(self.type))
        with self._user_errors(kind), torch.random.fork_rng(devices=[]):  # the test must not change later random numbers
            _check_gradient(adapted)
        if not can_merge(adapted):
            say(
                f"{self.type} cannot be merged, so the adapter alone is saved; loading it needs its base model, peft and "
                "nlp_transfer"
            )
        return adapted

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Check that the model has enough positions for the prompt and the longest text."""
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
    def _user_errors(self, kind: str) -> Iterator[None]:
        """Convert exceptions from peft and from the model to `UserError`, since their cause is in the settings."""
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

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        """Save the adapter in `adapter/`, and merge it into the model if the method allows merging.

        Raises:
            RuntimeError: If merging changes the logits.
        """
        save_adapter(model, folder / "adapter")
        if not can_merge(model):
            return model
        adapted: Any = model
        with torch.inference_mode():
            before = _tiny_logits(adapted)
        merged = merge_adapter(adapted)
        with torch.inference_mode():
            difference = float((before - _tiny_logits(merged)).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
            raise RuntimeError(f"{self.type}: merging the adapter changed the logits by up to {difference}")
        return merged


def _check_gradient(adapted: Any) -> None:
    """Check that the adapter gets a gradient.

    Raises:
        ValueError: If it gets none. Exceptions from the model are not caught.
    """
    training = adapted.training
    parameters = {name: p for name, p in adapted.named_parameters() if p.requires_grad and ".modules_to_save." not in name}
    logits = _tiny_logits(adapted)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits * weights).sum().backward()
    has_gradient = any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in parameters.values())
    adapted.zero_grad(set_to_none=True)
    adapted.train(training)
    if not has_gradient:
        raise ValueError("the adapter has no effect on the output of the model, so it could not learn")


def _tiny_logits(model: Any) -> torch.Tensor:
    """Return the logits for a tiny batch with one padded row. The model is switched to evaluation mode."""
    words = input_embeddings(model).num_embeddings
    device = next(model.parameters()).device
    ids = torch.randint(min(5, words - 1), words, (2, 6), generator=torch.Generator().manual_seed(0)).to(device)
    ids = place_end_tokens(model, ids, 3)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if has_decoder(model):
        inputs["decoder_input_ids"] = ids
    return output_logits(model.eval()(**inputs)).float().cpu()

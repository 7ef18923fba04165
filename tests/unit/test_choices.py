"""Automatic settings are resolved once, printed with their reason before the first step, and recorded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.accelerator import make_accelerator
from nlp_transfer.models.seq2seq.encoder_decoder import build_encoder_decoder
from nlp_transfer.models.seq2seq.target_tokenizers import train_tokenizer
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training import Trainer, automatic_settings
from nlp_transfer.training.automatic_settings import resolve_settings, set_attention
from tests.builders import opened, prepared, refused
from tests.contract.test_strategies import TASKS
from tests.helpers.models import tiny_classifier
from tests.helpers.seq2seq_models import PAIRS

pytestmark = pytest.mark.model

CPU_ALONE = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU other things are chosen")


def table(tokens: int = 9) -> TokenTable:
    ids = Ragged.from_lists([[2, *[7] * (tokens - 2), 3]] * 6)
    return TokenTable({"input_ids": ids}, {"labels": np.arange(6) % 2}, {"input_ids": 0})


def encoder_decoder(folder: Path) -> Any:
    target = train_tokenizer([pair[1] for pair in PAIRS], 300)
    return build_encoder_decoder(
        opened(folder), "encoder", target=target, decoder_layers=None, same_vocabulary=False,
        warm_start=True, hidden_dropout=0, attention_dropout=0,
    )  # fmt: skip


def with_own_head(folder: Path) -> Any:
    return prepared(folder, TASKS["deep"]).model


def is_innermost(part: Any) -> bool:
    return isinstance(part, PreTrainedModel) and sum(isinstance(inner, PreTrainedModel) for inner in part.modules()) == 1


def chosen(tokens: int = 9, family: str = "bert", **training: Any) -> automatic_settings.ResolvedSettings:
    return resolve_settings(tiny_classifier(family), table(tokens), TrainingConfig(**training))


@CPU_ALONE
def test_choices_are_printed_with_reasons_and_recorded(
    train: Any, sentiment: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    asked: list[str] = []
    monkeypatch.setattr(automatic_settings, "set_attention", lambda *a: asked.append(a[0]) or set_attention(*a))
    done = train(data={"train": sentiment["train"]}, training={"max_steps": 1, "batch_size": "auto", "precision": None})
    said = capsys.readouterr().err.splitlines()
    lines = [
        "precision fp32 (the CPU has no instructions for bf16)",
        "attention sdpa (transformers' default)",
        "kernels fast (faster on CPUs)",
        "batch size 32 (all rows of a step fit in memory)",
    ]
    assert [line for line in said if line in lines] == lines
    assert asked == ["auto"], "decided once"
    recorded = yaml.safe_load((done.output_dir / "config.yaml").read_text())["training"]
    names = ("precision", "attention", "kernels", "batch_size")
    assert [recorded[name] for name in names] == ["fp32", "sdpa", "fast", 32]


@CPU_ALONE
def test_attention_follows_kernels_precision_and_length() -> None:
    short = chosen(kernels="plain", precision="bf16")
    assert (short.attention, short.reasons["attention"]) == ("eager", "faster for short rows in bf16 on CPUs")
    for found in (
        chosen(kernels="fast", precision="bf16"),
        chosen(kernels="plain", precision="fp32"),
        chosen(200, kernels="plain", precision="bf16"),
    ):
        assert (found.attention, found.reasons["attention"]) == ("sdpa", "transformers' default")
    assert chosen(attention="eager").reasons["attention"] == "as set"
    with refused("found sdpa: deberta-v2 models", "; allowed: auto"):
        chosen(family="deberta-v2", attention="sdpa")
    assert chosen(family="deberta-v2").attention == chosen(family="deberta-v2", attention="eager").attention == "eager"


@CPU_ALONE
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet"])
def test_recorded_attention_gives_the_same_attention(family: str, tiny: dict[str, Path]) -> None:
    """Also for encoder-decoders and custom heads, whose outermost module has no attention."""
    for kind in ("decoder", "head"):
        ways = []
        asked = "auto"
        for _ in range(2):
            model = encoder_decoder(tiny[family]) if kind == "decoder" else with_own_head(tiny[family])
            asked, _ = set_attention(asked, model, torch.device("cpu"), "bf16", 9.0, fast=True)
            ways.append([asked, *(part.config._attn_implementation for part in model.modules() if is_innermost(part))])
        assert ways[0] == ways[1]
        assert asked in ways[0][1:], "what is said is what one of them computes"


@CPU_ALONE
def test_kernels_and_gradient_checkpointing() -> None:
    found = chosen(gradient_checkpointing=True)
    assert (found.kernels, found.reasons["kernels"]) == (
        "plain", "fast kernels do not support gradient checkpointing"
    )  # fmt: skip
    assert chosen(kernels="plain").reasons["kernels"] == "as set"
    with refused("found fast"):
        chosen(kernels="fast", gradient_checkpointing=True)


def test_trainer_resolves_its_own_settings() -> None:
    training = TrainingConfig(batch_size="auto", max_steps=1, precision="bf16", kernels="plain")
    model = tiny_classifier("bert")
    trainer = Trainer(model, None, {"train": table()}, settings=training)  # type: ignore[arg-type]
    assert trainer.settings.rows == trainer.resolved.training.rows == 32
    assert trainer.precision == "bf16"
    given = resolve_settings(model, table(), training)
    trainer = Trainer(model, None, {"train": table()}, settings=given)  # type: ignore[arg-type]
    assert trainer.resolved is given
    assert trainer.accelerator is given.accelerator


def test_given_accelerator_determines_the_precision() -> None:
    training = TrainingConfig(precision="fp32")
    accelerator = make_accelerator(training, "bf16")
    found = resolve_settings(tiny_classifier("bert"), table(), training, accelerator=accelerator)
    assert (found.precision, found.reasons["precision"]) == ("bf16", "the accelerator's")
    assert found.accelerator is accelerator

"""`training.batch_size: auto`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nlp_transfer.data.ragged import Ragged
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.accelerator import make_accelerator
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.training import batch_size
from nlp_transfer.training.automatic_settings import resolve_settings
from tests.builders import run, sentiment_rows, write
from tests.helpers.models import tiny_classifier


def table(rows: int, tokens: int) -> TokenTable:
    ids = Ragged.from_lists([[2, *[7] * (tokens - 2), 3]] * rows)
    return TokenTable({"input_ids": ids}, {"labels": np.zeros(rows, np.int64)}, {"input_ids": 0})


def fitted(monkeypatch: pytest.MonkeyPatch, free: float, tokens: int = 20, **settings: Any) -> tuple[int, int]:
    monkeypatch.setattr(batch_size, "free_memory", lambda device: free)
    training = TrainingConfig(batch_size="auto", **settings)
    model = tiny_classifier("bert")
    found, reason = batch_size.fit_batch(model, table(5, tokens), training, make_accelerator(training, "fp32"), "fp32")
    assert not model.training or all(module.training for module in model.modules())
    assert ("all rows" in reason) == (found.gradient_accumulation_steps == 1)
    return found.rows, found.gradient_accumulation_steps


def test_whole_step_is_one_batch_if_memory_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fitted(monkeypatch, 1e12, gradient_accumulation_steps=4) == (128, 1)
    assert fitted(monkeypatch, 1e12) == (32, 1)


def test_less_memory_gives_smaller_batches_of_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for free, tokens in ((1e8, 20), (4e6, 20), (4e6, 60), (1, 60)):
        size, pieces = fitted(monkeypatch, free, tokens, gradient_accumulation_steps=2)
        assert size * pieces == 64
        sizes.append(size)
    assert sizes[0] == 64 > sizes[1] > sizes[2] > sizes[3] == 1


def test_a_given_batch_size_is_kept() -> None:
    training = TrainingConfig(batch_size=7)
    found = resolve_settings(tiny_classifier("bert"), table(5, 9), training)
    assert found.training is training
    assert "batch_size" not in found.reasons


def test_batch_tokens_override_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 1.0)
    found = resolve_settings(tiny_classifier("bert"), table(5, 9), TrainingConfig(batch_size="auto", batch_tokens=64)).training
    assert (found.batch_tokens, found.gradient_accumulation_steps) == (64, 1)
    assert isinstance(found.batch_size, int)


def test_fitted_batch_size_is_recorded_and_losses_agree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: dict[str, Path]
) -> None:
    data = {"train": write(tmp_path / "train.csv", sentiment_rows(80))}
    losses = []
    for free, size in ((1e12, 32), (3e6, None)):
        monkeypatch.setattr(batch_size, "free_memory", lambda device, free=free: free)
        training = {"batch_size": "auto", "max_steps": 5, "dropout": 0.0, "attention_dropout": 0.0, "logging_steps": 1}
        done = run(model=tiny["bert"], data=data, training=training, output_dir=tmp_path / str(size))
        found = yaml.safe_load((done.output_dir / "config.yaml").read_text())["training"]
        assert found["batch_size"] == size or (size is None and found["batch_size"] < 32)
        assert found["batch_size"] * found["gradient_accumulation_steps"] == 32
        losses.append([json.loads(line)["loss"] for line in (done.output_dir / "log.jsonl").read_text().splitlines()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

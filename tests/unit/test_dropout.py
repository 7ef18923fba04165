"""`training.dropout` sets every dropout module, including those of custom heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import task_from
from nlp_transfer.training import Trainer
from tests.builders import opened
from tests.helpers import strategies
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

SINGLE: dict[str, Any] = {"name": "text_classification"}
OWN = {"hidden": [8], "pooling": "mean"}
OFF = {"dropout": 0, "attention_dropout": 0}


def built(checkpoint: Path, head: Any, **training: Any) -> nn.Module:
    task: Any = task_from(SINGLE | {"labels": ["a", "b"], "head": head})
    model: nn.Module = task.build_model(opened(checkpoint), TrainingConfig(**training))
    return model


def rates(model: nn.Module) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


def head_rates(model: Any) -> set[float]:
    return rates(model.classifier)


@pytest.mark.parametrize("head", [None, OWN], ids=["family", "own"])
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_dropout_reaches_every_module(family: str, head: Any, tiny: dict[str, Path]) -> None:
    model = built(tiny[family], head, **OFF).train()
    assert rates(model) <= {0.0}
    inputs = {"input_ids": torch.arange(5, 13)[None]}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("own", "training", "expected"), [(None, None, 0.1), (None, 0.0, 0.0), (None, 0.3, 0.3), (0.2, 0.0, 0.2), (0.0, 0.3, 0.0)]
)
def test_dropout_of_the_head_overrides(own: Any, training: Any, expected: float, tiny: dict[str, Path]) -> None:
    head = OWN | ({} if own is None else {"dropout": own})
    assert head_rates(built(tiny["bert"], head, dropout=training)) == {expected}


def test_dropout_reaches_a_saved_custom_head(tiny: dict[str, Path], tmp_path: Path) -> None:
    model: Any = built(tiny["bert"], OWN)
    model.save_pretrained(tmp_path)
    opened(tiny["bert"]).tokenizer.save_pretrained(tmp_path)
    assert rates(built(tmp_path, None, **OFF)) == {0.0}
    assert head_rates(built(tmp_path, None)) == {0.1}


@pytest.mark.parametrize("name", [name for name in strategies.NAMES if (name, "single") not in strategies.IMPOSSIBLE])
def test_strategies_keep_dropout_zero(name: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    seen: list[set[float]] = []
    document = strategies.document(
        name, "single", tiny["bert"], strategies.files(tmp_path / "data"), tmp_path / "run", tmp_path, **OFF
    )
    document["task"] = SINGLE
    original = Trainer.train

    def train(self: Trainer) -> Any:
        seen.append(rates(self.model))
        return original(self)

    from nlp_transfer import fine_tune

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", train)
        fine_tune(**document)
    assert len(seen) == 1
    assert seen[0] <= {0.0}

"""Batches, precision and cached weights of predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlp_transfer import load_predictor
from nlp_transfer.inference import batched_prediction
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.kernels.functions import FastFunctions
from nlp_transfer.models import cached_features
from nlp_transfer.models.accelerator import make_accelerator
from nlp_transfer.models.cached_features import CachePoint, cache_tables
from nlp_transfer.settings.schema import TrainingConfig
from tests.builders import prepared
from tests.contract.test_strategies import TASKS

pytestmark = pytest.mark.model

CPU_ALONE = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU another precision is chosen")


def made(tiny: dict[str, Path]) -> tuple[Any, Any, Any]:
    return prepared(tiny["bert"], TASKS["single"])[:3]


def test_progress_counts_batches(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, table = made(tiny)
    plans: list[int] = []
    shown: list[Any] = []
    batches_of, steps = batched_prediction.batches_of, batched_prediction.Steps

    def plan(*arguments: Any) -> list[np.ndarray]:
        found = batches_of(*arguments)
        plans.append(len(found))
        return found

    class Seen(steps):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            shown.append(self)

    monkeypatch.setattr(batched_prediction, "batches_of", plan)
    monkeypatch.setattr(batched_prediction, "Steps", Seen)
    accelerator = make_accelerator(TrainingConfig(), "fp32")
    predict_table(model.to(accelerator.device), task, table, 5, accelerator=accelerator)
    assert plans == [-(-len(table) // 5)]
    assert [(bar.title, bar.total, bar.done) for bar in shown] == [("evaluating", plans[0], plans[0])]


def test_weights_are_cast_once(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, table = made(tiny)
    used: list[FastFunctions] = []

    class Seen(FastFunctions):
        def __enter__(self) -> Any:
            used.append(self)
            return super().__enter__()

    monkeypatch.setattr(cached_features, "FastFunctions", Seen)
    monkeypatch.setattr(cached_features, "BATCH", 3)
    cache_tables(model, {"train": table}, CachePoint(), torch.device("cpu"), "bf16")
    assert len(used) == 1 + -(-len(table) // 3), "one row for the shape, then every batch"
    assert len(set(map(id, used))) == 2
    assert used[-1].copies._copies, "weights were cast"


@CPU_ALONE
def test_precision_auto(train: Any, sentiment: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done = train(data={"train": sentiment["train"]}, training={"max_steps": 3})
    texts = ["a good film", "an awful plot", "the dull story was not quite bad but the music was slow and cold"]
    found = {}
    for name, able in (("default", True), ("fp32", False), ("bf16", True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        predictor = load_predictor(done.output_dir, **({} if name == "default" else {"precision": "auto"}))  # type: ignore[arg-type]
        assert predictor.precision == ("fp32" if name == "default" else name)
        found[name] = np.array([one["probability:positive"] for one in predictor(texts, probabilities=True)])
    assert np.array_equal(found["fp32"], found["default"])
    assert 0 < np.abs(found["bf16"] - found["fp32"]).max() < 0.01

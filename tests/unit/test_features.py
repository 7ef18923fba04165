"""Cached features are the live ones, in every family and at every depth; a fixed encoder stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlp_transfer import load_predictor
from nlp_transfer.models import cached_features
from nlp_transfer.models.cached_features import CachePoint, cache_tables
from nlp_transfer.models.feature_replay import check_replay, disable_replay, enable_replay
from nlp_transfer.models.layers import find_layers
from tests.builders import columns, prepared, refused, run, write
from tests.contract.test_strategies import TASKS
from tests.helpers.families import save_family
from tests.helpers.models import FAMILIES

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
MIX = {"name": "text_classification", "head": {"layers": "mix", "pooling": "max"}}
FAMILY = TASKS["single"] | {"head": "family"}
HEADS = {"family": FAMILY, "deep": TASKS["deep"], "mix": MIX}


def make(folder: Path, task: Any, strategy: Any) -> Any:
    model, _, table, *_ = prepared(folder, task, strategy)
    return model.eval(), table


def logits(model: Any, table: Any, rows: np.ndarray) -> torch.Tensor:
    batch = {name: value for name, value in table.batch(rows).items() if name != "labels"}
    found: torch.Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", list(HEADS))
def test_cached_vectors_give_the_live_logits(family: str, head: str, tiny: dict[str, Path]) -> None:
    model, table = make(tiny[family], HEADS[head], {"name": "features"})
    rows = np.array([5, 0, 11, 7])
    live = logits(model, table, rows)
    enable_replay(model, CachePoint())
    cached = cache_tables(model, {"train": table}, CachePoint(), CPU)["train"]
    calls: list[int] = []
    handle = model.get_submodule(find_layers(model).prefix)[0].register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(logits(model, cached, rows), live, atol=1e-5)
    assert not calls, "no layer of the encoder ran"
    assert torch.allclose(logits(model, table, rows), live, atol=1e-5), "without cached vectors the encoder runs as ever"
    handle.remove()
    disable_replay(model)
    assert torch.allclose(logits(model, table, rows), live, atol=1e-6)
    assert cached.lengths.tolist() == table.lengths.tolist(), "windows are planned as for live rows"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "albert"])  # whose layers share their weights
def test_cached_layer_states_give_the_live_logits(family: str, tiny: dict[str, Path]) -> None:
    model, table = make(tiny[family], TASKS["single"], {"name": "partial", "frozen_layers": 1})
    rows = np.array([5, 0, 11, 7])
    live = logits(model, table, rows)
    enable_replay(model, CachePoint(1))
    check_replay(model, table, CachePoint(1), CPU)
    cached = cache_tables(model, {"train": table}, CachePoint(1), CPU)["train"]
    with torch.no_grad():  # so that only the cached states can still give the right answer
        for parameter in model.get_submodule(find_layers(model).prefix)[0].parameters():
            parameter.add_(torch.randn_like(parameter))
    assert torch.allclose(logits(model, cached, rows), live, atol=1e-5)
    assert not torch.allclose(logits(model, table, rows), live, atol=1e-3)


@pytest.mark.parametrize(("family", "reason"), [("fnet", "differ by"), ("longformer", "IndexError")])
def test_families_that_cannot_be_split_are_refused(family: str, reason: str, tmp_path: Path) -> None:
    strategy = {"name": "partial", "frozen_layers": 1}
    model, _, table, *_ = prepared(save_family(family, tmp_path), TASKS["single"], strategy)
    enable_replay(model, CachePoint(1))
    with refused("strategy.cache", family, reason):
        check_replay(model, table, CachePoint(1), CPU)


@pytest.mark.parametrize(
    ("strategy", "task"),
    [
        ({"name": "features"}, "text_classification"),
        ({"name": "features"}, {"name": "multi_label", "label": "tags"}),
        ({"name": "features"}, {"name": "regression", "label": "score"}),
        ({"name": "features"}, {"name": "text_classification", "head": {"hidden": [16], "layers": "mix"}}),
        ({"name": "partial", "frozen_layers": 1}, "text_classification"),
        ({"name": "partial", "frozen_layers": "all"}, {"name": "text_classification", "text_pair": "other"}),
    ],
)
def test_training_on_cached_and_live_features_is_equal(
    strategy: dict[str, Any], task: Any, tiny: dict[str, Path], tmp_path: Path
) -> None:
    source = write(tmp_path / "train.csv", columns(60))
    found = {}
    for cache in ("none", "memory", "disk"):
        done = run(
            model=tiny["bert"], data={"train": source, "validation_share": 0.2}, task=task,
            strategy=strategy | {"cache": cache}, output_dir=tmp_path / cache,
            training={"epochs": 3, "batch_size": 16, "learning_rate": 1e-2},
        )  # fmt: skip
        found[cache] = {name: value.clone() for name, value in load_predictor(done.output_dir).model.named_parameters()}
        assert done.result["train"]["steps"] == 9
    for cache in ("memory", "disk"):
        for name, value in found["none"].items():
            assert torch.allclose(value, found[cache][name], atol=1e-5), (cache, name)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cached_file_is_reused_only_for_equal_features(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, table = make(tiny["bert"], FAMILY, {"name": "features"})
    computed: list[str] = []
    original = cached_features.compute_in_batches

    def count(table: Any, compute: Any, title: str) -> Any:
        computed.append(title)
        return original(table, compute, title)

    monkeypatch.setattr(cached_features, "compute_in_batches", count)

    def cache(table: Any, precision: str = "fp32") -> Any:
        return cache_tables(model, {"train": table}, CachePoint(), CPU, precision, "disk")["train"].cached["pooled"]

    first = cache(table)
    assert isinstance(first, np.memmap)
    assert np.array_equal(first, cache(table))
    assert len(computed) == 1
    cache(table.select(np.arange(10)))
    cache(table, "bf16")
    assert len(computed) == 3
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 0] += 1e-3
    assert not np.array_equal(first, cache(table))
    assert len(computed) == 4
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    cache(table)
    model.config.id2label = {0: "bad", 1: "good"}
    cache(table)
    assert len(computed) == 4, "the head above the cache point and its labels do not matter"


def test_interrupted_file_is_not_reused(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, table = make(tiny["bert"], FAMILY, {"name": "features"})

    def fail(table: Any, compute: Any, title: str) -> Any:
        rows = np.arange(3)
        yield rows, compute(rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(cached_features, "compute_in_batches", fail)
    with pytest.raises(KeyboardInterrupt):
        cache_tables(model, {"train": table}, CachePoint(), CPU, "fp32", "disk")
    assert list(cached_features.cache_folder().iterdir()) == []


def test_logistic_regression_equals_scikit_learn(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    done = run(
        model=tiny["bert"], data=sentiment, output_dir=tmp_path / "run",
        strategy={"name": "features", "classifier": "logistic_regression", "regularization": 0.5},
    )  # fmt: skip
    assert done.result["train"]["steps"] == 0
    predictor = done.predictor()
    vectors, labels = {}, {}
    for split, path in sentiment.items():
        lines = [line.rsplit(",", 1) for line in path.read_text().splitlines()[1:]]
        inputs = predictor.tokenizer([text for text, _ in lines], padding=True, return_tensors="pt")
        with torch.inference_mode():
            vectors[split] = predictor.model.pooled_states(**inputs).numpy()
        labels[split] = [label for _, label in lines]
    theirs = LogisticRegression(C=2.0, max_iter=2000).fit(vectors["train"].astype(np.float64), labels["train"])
    answers = [line.rsplit(",", 1)[0] for line in sentiment["test"].read_text().splitlines()[1:]]
    ours = predictor(answers, probabilities=True)
    wanted = theirs.predict_proba(vectors["test"].astype(np.float64))
    for answer, row in zip(ours, wanted, strict=True):
        assert answer["probability:negative"] == pytest.approx(row[0], abs=2e-3)
        assert answer["probability:positive"] == pytest.approx(row[1], abs=2e-3)

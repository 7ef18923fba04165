"""Shared fixtures: tiny checkpoints and tiny data. No test reaches a network."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: more threads only wait for each other

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.utils.environment import importing

with importing():
    from tests.builders import document, run, sentiment_rows, write
    from tests.helpers.models import FAMILIES, save_tiny


def pytest_configure() -> None:
    """Tests run on the CPU, as on every other machine; with CUDA_VISIBLE_DEVICES=0 they run on a GPU."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test without one of the marks `model`, `process` and `hub` is fast."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("model", "process", "hub")):
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Exclude imported modules and collected tests from garbage collection, which otherwise takes a third of a short training."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Let `fsync` only check its argument, since it waits a millisecond for the disk and matters only if the power fails.

    Tests of what is synced record the calls themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pretrained encoder of every tested family, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: save_tiny(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """CSV files of a task that a tiny model learns: train (96 rows) and test (40 rows)."""
    folder = tmp_path_factory.mktemp("sentiment")
    rows = sentiment_rows(136)
    return {"train": write(folder / "train.csv", rows[:96]), "test": write(folder / "test.csv", rows[96:])}


@pytest.fixture
def plan(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`builders.document` of a tiny BERT on the sentiment rows, in `tmp_path/run`."""
    return partial(document, model=tiny["bert"], data=sentiment, output_dir=tmp_path / "run")


@pytest.fixture
def train(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    """`builders.run` of a tiny BERT on the sentiment rows, in `tmp_path/run`."""
    return partial(run, model=tiny["bert"], data=sentiment, output_dir=tmp_path / "run")

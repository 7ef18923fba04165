"""Shared fixtures: tiny checkpoints and tiny data. No test reaches a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: more threads only wait for each other

import csv
import random
from pathlib import Path
from typing import Any

import pytest

from tests.models import FAMILIES, WORDS, save_tiny


def pytest_configure() -> None:
    """Tests run on the CPU, as on every other machine; with CUDA_VISIBLE_DEVICES=0 they run on a GPU."""
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test without one of the marks `model`, `process` and `hub` is fast."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("model", "process", "hub")):
            item.add_marker("fast")


GOOD, BAD = ("good", "great", "bright"), ("bad", "awful", "dull")


def sentiment_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, label) with a word in each text that gives the label away; all texts differ."""
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    neutral = [word for word in WORDS if word not in GOOD + BAD]
    while len(rows) < count:
        label = ("negative", "positive")[len(rows) % 2]
        words = generator.choices(neutral, k=generator.randint(3, 9))
        words.insert(generator.randrange(len(words) + 1), generator.choice(GOOD if label == "positive" else BAD))
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def write_csv(path: Path, rows: list[tuple[object, ...]], header: tuple[str, ...] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def train_tiny(folder: Path) -> Any:
    """A finished run of a tiny model that took one step, in `folder/run`."""
    from nlp_transfer import fine_tune

    return fine_tune(
        model=str(save_tiny("bert", folder / "tiny")),
        data={"train": str(write_csv(folder / "train.csv", sentiment_rows(100)))},
        task="text_classification",
        training={"max_steps": 1},
        output_dir=folder / "run",
    )


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
    return {"train": write_csv(folder / "train.csv", rows[:96]), "test": write_csv(folder / "test.csv", rows[96:])}

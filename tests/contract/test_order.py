"""The order of train's rows decides nothing: sorted by label or shuffled, every strategy sees the same and learns the same."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlp_transfer import fine_tune
from nlp_transfer.data.oversampling import Repeats
from nlp_transfer.data.windows import Window, WindowPlan
from nlp_transfer.training.gradient import WindowGradient
from tests.builders import write
from tests.helpers.strategies import HEADER, NAMES, TASKS, document, rows_of

pytestmark = pytest.mark.model

STRATEGIES = NAMES
SHUFFLES = 3
FIGURES = ("seen", "unevenness", "accuracy", "loss", "probability")
LEAST = np.array([0.02, 0.05, 0.05, 0.02, 0.03])  # what three shuffles may miss of what chance alone does


class Trial:
    """Runs of one strategy on the same rows in different orders, with the same seed."""

    def __init__(self, name: str, checkpoint: Path, folder: Path) -> None:
        self.name, self.checkpoint, self.folder = name, checkpoint, folder
        rows = rows_of(160)
        self.train = rows[:40]
        parts = {"test": rows[40:80], "unlabelled": rows[80:100], "other": rows[100:]}
        folder.mkdir(parents=True)
        self.files = {part: str(write(folder / f"{part}.csv", some, HEADER)) for part, some in parts.items()}

    def figures(self, order: str, rows: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        """`FIGURES`: the share of the second label among the rows seen in training, how far that of an optimizer step is from it
        on average, and on the test split accuracy, loss and the mean probability of that label."""
        source = self.files | {"train": str(write(self.folder / f"{order}.csv", rows, HEADER))}
        settings: dict[str, Any] = document(
            self.name, "single", self.checkpoint, source, self.folder / order, self.folder, batch_size=8, dropout=0
        )
        settings["training"] |= {"max_steps": None, "epochs": 2, "learning_rate": 1e-3}
        if self.name == "multitask":  # forty rows beside sixty, as often as these
            other = {"train": source["other"], "validation_share": 0}
            tasks = [{"name": "other", "data": other, "task": TASKS["regression"]}]
            settings["strategy"] = {"name": "multitask", "temperature": 1000.0, "tasks": tasks}
        seen: list[np.ndarray] = []
        original = WindowGradient.compute

        def count(gradient: WindowGradient, window: Window, at: Any) -> Any:
            targets = gradient.table.targets(window.rows)
            labels = targets.get("own/labels", targets.get("labels"))
            if labels is not None and labels.dim() == 1:  # rows of the run's own task, not groups of them
                seen.append(labels.numpy())
            return original(gradient, window, at)

        with monkeypatch.context() as patch:
            patch.setattr(WindowGradient, "compute", count)
            run = fine_tune(**settings, with_report=False)
        share = float(np.concatenate(seen).mean()) if seen else 0.0
        unevenness = float(np.mean([abs(labels.mean() - share) for labels in seen])) if seen else 0.0
        metrics, probability = run.metrics["test"], run.predictions["test"]["scores"][:, 1].mean()
        return np.array([share, unevenness, metrics["accuracy"], metrics["loss"], probability])

    def differences(self, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
        """By how much rows sorted by label are beyond what shuffles differ by: above 0 that is no chance."""
        by_label = sorted(self.train, key=lambda row: str(row[2]))
        shuffles = []
        for seed in range(SHUFFLES):
            rows = list(self.train)
            random.Random(seed).shuffle(rows)
            shuffles.append(self.figures(f"shuffle-{seed}", rows, monkeypatch))
        found = self.figures("sorted", by_label, monkeypatch)
        return np.abs(found - np.mean(shuffles, 0)) - np.maximum(4 * np.std(shuffles, 0, ddof=1), LEAST)


def test_there_are_strategies() -> None:
    assert {"full", "multitask", "few_shot", "self_training"} <= set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_row_order_has_no_effect(name: str, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = Trial(name, tiny["bert"], tmp_path / "trial").differences(monkeypatch)
    assert (beyond <= 0).all(), dict(zip(FIGURES, beyond.tolist(), strict=True))


def first_rows(repeats: Repeats, generator: np.random.Generator) -> np.ndarray:
    """The rows of an epoch where those that repeat are always the first of the file."""
    classes = enumerate(repeats.totals().tolist())
    return np.concatenate([np.resize(np.flatnonzero(repeats.classes == number), total) for number, total in classes])


def in_file_order(plan: WindowPlan, epoch: int) -> list[np.ndarray]:
    """Windows of neighbours in the file."""
    return np.split(np.arange(len(plan.lengths)), range(plan.batch_size, len(plan.lengths), plan.batch_size))


@pytest.mark.parametrize(
    ("name", "owner", "method", "fault"),
    [("multitask", Repeats, "rows", first_rows), ("full", WindowPlan, "windows", in_file_order)],
)
def test_check_detects_an_effect_of_the_order(
    name: str, owner: Any, method: str, fault: Any, tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, method, fault)
    beyond = Trial(name, tiny["bert"], tmp_path / "trial").differences(monkeypatch)
    assert (beyond > 0).any(), beyond

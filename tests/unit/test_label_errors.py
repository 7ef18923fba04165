"""Confident learning: the same list as cleanlab, and what the command reads, prints and writes."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleanlab.filter import find_label_issues

from nlp_transfer.evaluation.label_errors import Method, RankBy, find_label_errors
from tests.builders import command, read_table, succeed, write


def noisy(rows: int, classes: int, flipped: float, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities of a plausible model, given labels and which of these are wrong."""
    generator = np.random.default_rng(seed)
    true = np.minimum(generator.geometric(1.5 / classes, rows) - 1, classes - 1)  # classes of different sizes
    logits = generator.normal(0, 1, (rows, classes)) + sharpness * np.eye(classes)[true]
    wrong = generator.random(rows) < flipped
    labels = np.where(wrong, (true + generator.integers(1, classes, rows)) % classes, true)
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(1, keepdims=True), labels, wrong


CASES = [(500, 2, 0.05, 2), (800, 5, 0.1, 3), (3000, 40, 0.05, 5), (200, 30, 0.2, 1), (60, 12, 0.3, 0.5), (40, 25, 0.0, 8)]


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize(("rows", "classes", "flipped", "sharpness"), CASES)
def test_the_list_is_cleanlabs(rows: int, classes: int, flipped: float, sharpness: float, method: Method) -> None:
    """Also with classes of one row or none, and with a model that is hardly better than chance."""
    reported = 0
    for seed, rank_by in enumerate(get_args(RankBy) * 3):
        probabilities, labels, _ = noisy(rows, classes, flipped, sharpness, seed)
        with warnings.catch_warnings(action="ignore"):
            expected = find_label_issues(labels, probabilities, filter_by=method, return_indices_ranked_by=rank_by, n_jobs=1)
        errors = find_label_errors(probabilities, labels, method, rank_by)
        assert errors.rows.tolist() == expected.tolist()
        assert (errors.suggested == probabilities.argmax(1)[errors.rows]).all()
        assert (np.diff(errors.scores) >= 0).all()
        reported += len(errors.rows)
    assert reported or not flipped


def test_flipped_labels_are_reported_first() -> None:
    probabilities, labels, wrong = noisy(4000, 6, 0.05, 6, seed=1)
    errors = find_label_errors(probabilities, labels)
    assert wrong[errors.rows[:100]].mean() > 0.95
    assert wrong[errors.rows].sum() / wrong.sum() > 0.9
    assert errors.noise_share == pytest.approx(0.05, abs=0.01)


def test_correct_labels_give_an_empty_list() -> None:
    labels = np.arange(60) % 3
    errors = find_label_errors(np.eye(3)[labels] * 0.97 + 0.01, labels)
    assert (len(errors.rows), errors.noise_share) == (0, 0.0)


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.zeros((0, 2)), np.zeros(0, int)),
        (np.ones((2, 1)), np.zeros(2, int)),
        (np.full((2, 2), 0.5), np.array([0, 2])),
        (np.full((2, 2), 0.5), np.array([0.0, 1.0])),
        (np.full((2, 2), 0.5), np.array([0])),
        (np.full((2, 2), np.nan), np.array([0, 1])),
        (np.array([[3.0, -2.0]]), np.array([0])),
    ],
)
def test_invalid_probabilities_and_labels_are_errors(probabilities: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="found"):
        find_label_errors(probabilities, labels)


# The command


def table(path: Path, repeats: int = 1, **columns: Any) -> Path:
    """Write out-of-fold predictions of 60 rows, of which the rows 7 and 8 have a wrong label."""
    labels = [i % 2 for i in range(60)]
    chances = [0.1 if (i % 2 == 0) != (i in (7, 8)) else 0.9 for i in range(60)]
    cells: dict[str, list[Any]] = {"text": [f"text {i // 2}" for i in range(60)], "reference": labels} | columns
    content = {name: cells * repeats for name, cells in cells.items()}
    for label, shares in (("0", [1 - p for p in chances]), ("1", chances)):
        content[f"probability:{label}"] = shares * repeats
    if repeats > 1:
        content["repeat"] = [i // 60 % 2 for i in range(60 * repeats)]
        content["strategy"] = ["lora" if i >= 120 else "full" for i in range(60 * repeats)]
        content["fold"] = [i % 5 for i in range(60 * repeats)]
    pq.write_table(pa.table(content), path)
    return path


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_command_prints_and_writes_the_list(repeats: int, tmp_path: Path) -> None:
    """The rows of several repeats and strategies are averaged; labels are numbers in the data."""
    source = table(tmp_path / "out_of_fold.parquet", repeats)
    output, shown = succeed("label-errors", source, "--rank-by", "normalized_margin")
    assert "text 3" in shown
    counts = json.loads(output)
    assert (counts["rows"], counts["model_accuracy"]) == (60, pytest.approx(58 / 60, abs=1e-6))
    rows = read_table(tmp_path / "label_errors.csv")
    assert sorted((row["text"], row["given_label"], row["suggested_label"]) for row in rows) == [
        ("text 3", "1", "0"), ("text 4", "0", "1"),
    ]  # fmt: skip
    assert command("label-errors", source)[0] == 2, "the list exists"
    assert command("label-errors", source, "--overwrite", "--output", tmp_path / "label_errors.csv")[0] == 0
    assert command("label-errors", source, "--output", source, "--overwrite")[0] == 2, "the input is not replaced"


def test_the_folder_of_a_cross_validation_is_enough(tmp_path: Path) -> None:
    table(tmp_path / "out_of_fold.parquet")
    assert json.loads(succeed("label-errors", tmp_path)[0])["label_errors"] == 2
    assert len(read_table(tmp_path / "label_errors.csv")) == 2


@pytest.mark.parametrize(
    ("columns", "facts"),
    [
        ({"reference": ["0|1"] * 60}, ["row 1", "'0|1'"]),
        ({"reference": [None] * 60}, ["None"]),
        ({"suggested_label": ["0"] * 60}, ["suggested_label"]),
    ],
)
def test_unsuitable_tables_are_errors(columns: dict[str, Any], facts: list[str], tmp_path: Path) -> None:
    status, _, output = command("label-errors", table(tmp_path / "t.parquet", **columns))
    assert status == 2
    assert all(fact in output for fact in facts), output
    assert not (tmp_path / "label_errors.csv").exists()


def test_files_without_probabilities_are_errors(tmp_path: Path) -> None:
    status, _, output = command("label-errors", write(tmp_path / "t.csv", [("a", "b")]))
    assert (status, "reference" in output) == (2, True)
    for missing in (tmp_path, tmp_path / "none.parquet"):
        assert command("label-errors", missing)[0] == 2


@pytest.mark.model
def test_the_command_reads_a_run(train: Callable[..., Any], sentiment: dict[str, Path], tmp_path: Path) -> None:
    run = train(data={"train": sentiment["train"], "validation_share": 0.3}, training={"max_steps": 2})
    output, _ = succeed("label-errors", run.output_dir, "--output", tmp_path / "list.jsonl")
    counts = json.loads(output.splitlines()[-1])
    assert counts["rows"] == len(read_table(run.output_dir / "predictions/validation.parquet"))
    if counts["label_errors"]:
        assert {"text", "file", "row", "given_label", "suggested_label"} <= set(read_table(tmp_path / "list.jsonl")[0])

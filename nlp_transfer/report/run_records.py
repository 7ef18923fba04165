"""Read the records of a finished run: settings, metrics, log and predictions."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nlp_transfer.evaluation.metrics.scorer import Scorer
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.saved_models.layout import DATA_FACTS, PREDICTIONS
from nlp_transfer.saved_models.log_reader import read_log
from nlp_transfer.security.file_locks import read_record
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

MOST_NAMED = 10  # runs in a message
SPLITS = ("test", "validation")  # a report analyses the first one that was scored


@dataclass(frozen=True)
class Predictions:
    """The scored rows of a split.

    Attributes:
        columns: The columns of the predictions file by name.
        scored: The same predictions and references as arrays.
    """

    split: str
    columns: Mapping[str, list[Any]]
    scored: ScoredSplit


@dataclass(frozen=True)
class RunRecords:
    """The records of a finished run. Those that are missing are empty.

    Attributes:
        result: Content of `result.json`.
        settings: Content of `config.yaml`.
        log: Lines of `log.jsonl`.
        facts: Content of `data_facts.json`: facts about the data that only the run knows.
        label: Name of the run in a report, if it is not that of its folder.
    """

    folder: Path
    result: dict[str, Any]
    settings: dict[str, Any]
    log: list[dict[str, Any]]
    facts: dict[str, Any]
    label: str = ""

    @classmethod
    def read(cls, folder: Path, result: dict[str, Any] | None = None) -> "RunRecords":
        """Read the records in the folder of a run.

        Args:
            result: Content of `result.json`. None: read it.

        Raises:
            UserError: The folder holds no finished run, or a record is not valid.
        """
        if result is None and not (folder / "result.json").is_file():
            inside = sorted(str(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/result.json"))
            more = f" and {len(inside) - MOST_NAMED:,} more" if len(inside) > MOST_NAMED else ""
            raise UserError(
                f"{folder}: is not a run but contains finished runs: {', '.join(inside[:MOST_NAMED])}{more}; allowed: one of them"
                if inside
                else f"{folder}: holds no finished run (there is no result.json); allowed: the output_dir of a finished run"
            )
        result = _mapping(folder / "result.json", json.loads) if result is None else result
        settings, facts = _mapping(folder / "config.yaml", yaml.safe_load), _mapping(folder / DATA_FACTS, json.loads)
        log = folder / "log.jsonl"
        return cls(folder, result, settings, read_log(log) if log.is_file() else [], facts)

    @property
    def name(self) -> str:
        """The label of the run, or the name of its folder."""
        return self.label or self.folder.absolute().name

    @cached_property
    def task(self) -> Task:
        """The task with its labels."""
        return task_from(self.result["task"])

    @property
    def scorer(self) -> Scorer:
        """The scorer of the task."""
        return self.task.scorer

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by split and name."""
        return self.result.get("metrics") or {}

    @cached_property
    def predictions(self) -> Predictions | None:
        """The predictions of the first of `SPLITS` that has any. None: there are none that can be analysed."""
        for split in SPLITS:
            path = self.folder / PREDICTIONS / f"{split}.parquet"
            if not path.is_file():
                continue
            try:
                columns = pq.read_table(path).to_pydict()
                return Predictions(split, columns, ScoredSplit(*self.scorer.parse(columns)))
            except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError, AttributeError) as error:
                say(f"warning: {path}: its predictions are not analysed ({type(error).__name__}: {error})")
        return None

    @cached_property
    def draft(self) -> str:
        """The settings of the drafts that were scored during training, see `Scorer.draft`. Empty: no drafts."""
        evaluations = [line["validation"] for line in self.log if isinstance(line.get("validation"), dict)]
        logged = evaluations[-1] if evaluations else {}
        return ", ".join(f"{name} {logged[name]}" for name in self.scorer.draft(1)[1] if name in logged)

    def inputs(self, row: int) -> list[str]:
        """Return the input texts of a row of `predictions`."""
        assert self.predictions is not None
        return [input_text(self.predictions.columns[name][row]) for name in self.task.inputs]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters in the inputs of each row of `predictions`, int64 of shape (rows,)."""
        assert self.predictions is not None
        columns = [self.predictions.columns[name] for name in self.task.inputs]
        return np.array([sum(len(input_text(cell)) for cell in cells) for cells in zip(*columns, strict=True)], np.int64)


def input_text(cell: Any) -> str:
    """Return the text of an input cell; words are joined by spaces."""
    return " ".join(map(str, cell)) if isinstance(cell, list) else str(cell)


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = parse(read_record(path).decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); allowed: the file as the run wrote it") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}; allowed: the file as the run wrote it")
    return content

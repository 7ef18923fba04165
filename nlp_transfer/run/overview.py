"""Find the runs in a folder and summarize each one from its records, without loading models.

Records may be damaged or written by other programs: such runs are listed with the reason, and the others are not affected.
"""

import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.portable_paths import mapping
from nlp_transfer.evaluation.metrics.scorer import LOWER_IS_BETTER
from nlp_transfer.run.document import read_document
from nlp_transfer.run.folder import LOCK
from nlp_transfer.saved_models.log_reader import read_log
from nlp_transfer.security.file_locks import is_held, read_record
from nlp_transfer.utils.console import number
from nlp_transfer.utils.errors import UserError, brief

RESULT, CONFIG, LOG = "result.json", "config.yaml", "log.jsonl"
MAX_PROBLEM = 100  # characters in a table
MAX_DEPTH = 4  # folders below the one that is searched


@dataclass
class RunSummary:
    """What a list of runs shows about one run. Values that are not recorded are None.

    Attributes:
        name: Path of the run below the searched folder.
        status: `finished`, `running`, `unfinished` (interrupted; the same command resumes it) or `damaged`.
        split: The split of `metric`: test or, without one, validation.
        metric: Name of the metric: the requested one, or the main metric of the run.
        value: Value of the metric. For an unfinished run: of its last evaluation.
        date: Time of the last change of the record, in ISO 8601 with the offset of the local time.
        seconds: Duration of training.
        step: Last logged step, for running and unfinished runs.
        problem: Why the record cannot be read.
    """

    name: str
    status: str
    task: str | None = None
    strategy: str | None = None
    model: str | None = None
    split: str | None = None
    metric: str | None = None
    value: float | None = None
    data: str | None = None
    date: str | None = None
    seconds: float | None = None
    step: int | None = None
    problem: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)


def find_runs(folder: Path, metric: str | None = None) -> list[RunSummary]:
    """Summarize all runs in a folder and its subfolders, newest first or, with a metric, best first.

    Args:
        metric: the metric to show and to sort by. Runs without it come last.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; allowed: a folder that contains runs")
    runs = [summarize(path, folder, metric) for path in _run_folders(folder)]
    runs.sort(key=lambda run: run.date or "", reverse=True)
    if metric is not None:
        sign = 1 if metric in LOWER_IS_BETTER else -1
        runs.sort(key=lambda run: (run.value is None, sign * (run.value or 0.0)))
    return runs


def _run_folders(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):  # does not follow links
        path = Path(place)
        if {RESULT, CONFIG} & set(files):
            yield path
            folders.clear()
        elif len(path.relative_to(folder).parts) >= MAX_DEPTH:
            folders.clear()
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def summarize(path: Path, below: Path, metric: str | None = None) -> RunSummary:
    """Summarize the run in a folder. A damaged record is described in `problem`; this function raises no error for it.

    Args:
        below: the folder that the name of the run is relative to.
    """
    name = str(path.relative_to(below)) if path != below else path.resolve().name
    run = RunSummary(name, "unfinished")
    try:
        run.date = _date(path)
        config = read_document(path / CONFIG) if os.path.lexists(path / CONFIG) else {}
        result = {}
        if os.path.lexists(path / RESULT):
            run.status = "finished"
            result = json.loads(read_record(path / RESULT))
            if not isinstance(result, dict) or not isinstance(result.get("metrics"), dict):
                raise ValueError(f"{RESULT}: there are no `metrics` in it")
        elif is_held(path / LOCK):
            run.status = "running"
        _describe(run, config | {key: result[key] for key in ("task", "strategy", "model") if key in result})
        has_log = run.status != "finished" and os.path.lexists(path / LOG)
        lines = read_log(path / LOG) if has_log else []
        run.step = lines[-1].get("step") if lines else (None if run.status == "finished" else 0)
        evaluations = [line["validation"] for line in lines if isinstance(line.get("validation"), dict)]
        run.metrics = result.get("metrics", {}) or ({"validation": evaluations[-1]} if evaluations else {})
        _choose_metric(run, metric or mapping(config.get("training")).get("best_metric"), metric is None)
        seconds = mapping(result.get("train")).get("seconds")
        run.seconds = float(seconds) if isinstance(seconds, (int, float)) else None
    except (UserError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        run.status, run.problem = "damaged", _problem(error, path)
    return run


def _problem(error: Exception, path: Path) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{RESULT} is not valid JSON: {error}"
    return brief(str(error)).replace(f"{path}{os.sep}", "")


def _date(path: Path) -> str | None:
    times = [(path / name).lstat().st_mtime for name in (RESULT, LOG, CONFIG) if os.path.lexists(path / name)]
    return datetime.fromtimestamp(times[0]).astimezone().isoformat(timespec="seconds") if times else None


def _describe(run: RunSummary, document: Mapping[str, Any]) -> None:
    run.task, run.strategy = _named(document.get("task")), _named(document.get("strategy"))
    run.model = None if document.get("model") is None else str(document["model"])
    train = mapping(document.get("data")).get("train")
    run.data = None if train is None else ", ".join(map(str, train.values() if isinstance(train, Mapping) else [train]))


def _named(value: Any) -> str | None:
    parts = value if isinstance(value, list) else [value]
    names = [str(part.get("name") if isinstance(part, Mapping) else part) for part in parts if part is not None]
    return "+".join(names) or None


def _choose_metric(run: RunSummary, name: Any, or_first: bool) -> None:
    """Set the split, name and value of the metric that is shown."""
    for split in ("test", "validation"):
        numbers = {key: value for key, value in mapping(run.metrics.get(split)).items() if _is_number(value)}
        found = name if name in numbers else next(iter(numbers), None) if or_first else None
        if found is not None:
            run.split, run.metric, run.value = split, found, float(numbers[found])
            return


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def documents(runs: Iterable[RunSummary]) -> list[dict[str, Any]]:
    """Return the summaries as JSON values."""
    return [asdict(run) for run in runs]


COLUMNS = ("run", "metric", "strategy", "task", "model", "data", "date", "seconds", "status")


def table_of(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Return the columns and the rows of a table, and the columns in which several runs are all equal, by name."""
    rows = [
        [
            run.name,
            "" if run.value is None else f"{run.metric} {number(run.value)} on {run.split}",
            run.strategy or "", run.task or "", _short(run.model), _short(run.data),
            (run.date or "")[:16].replace("T", " "), "" if run.seconds is None else f"{run.seconds:,.0f}", _status(run),
        ]
        for run in runs
    ]  # fmt: skip
    cells = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
    equal = {name: cells[name][0] for name in COLUMNS[2:] if len(runs) > 1 and len(set(cells[name])) == 1}
    shown = [name for name in COLUMNS if name not in equal]
    return shown, [list(row) for row in zip(*(cells[name] for name in shown), strict=True)], equal


def _status(run: RunSummary) -> str:
    if run.status == "damaged":
        return f"damaged: {textwrap.shorten(run.problem or '', MAX_PROBLEM, placeholder=' ...')}"
    return run.status if run.status == "finished" else f"{run.status}, step {run.step}"


def _short(source: str | None) -> str:
    """Return the last part of a path or hub id, or the name of a package."""
    source = (source or "").removeprefix("pypi:").partition("#")[0] if (source or "").startswith("pypi:") else source or ""
    return source.rstrip("/").replace("\\", "/").rpartition("/")[2]

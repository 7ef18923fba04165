"""Mistakes in a valid run: one case says what is changed and which facts the message must hold; `check` runs any case."""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import exit_status, sentiment_rows

GONE = object()  # as a setting's value: the setting is removed
TRAIN = sentiment_rows(16)
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in TRAIN)  # rows 2 to 17
SCORES = "text,label\n" + "".join(f"{text},{i / 4}\n" for i, (text, _) in enumerate(TRAIN))
JSONL = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in TRAIN)
VALID: dict[str, Any] = {
    "model": "base",
    "data": {"train": "train.csv", "validation_share": 0.25},
    "task": {"name": "text_classification"},
    "training": {"epochs": 1, "precision": "fp32"},
    "output_dir": "run",
}


@dataclass(frozen=True)
class Case:
    """One mistake.

    Attributes:
        says: the facts that the message must hold, in their order, with ` … ` between them.
        settings: changes to the valid document, by dotted name.
        files: written before the command, by path; None: removed, a function: called with the path.
        run: the command line after `nlp-transfer`.
        silent: text that the message must not hold.
        errors: how often the message says "error:"; a command that shows its help says it never.
    """

    id: str
    says: str
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    run: tuple[str, ...] = ("train", "run.yaml")
    silent: tuple[str, ...] = ()
    errors: int = 1


def setting(name: str, value: Any, says: str = "") -> Case:
    """One wrong value; without `says`, the message names the setting, the value and what is allowed."""
    return Case(f"{name} {value}", says or f"{name}: found {value!r}; allowed:", {name: value})


def wrong(name: str, value: Any, facts: str) -> Case:
    """One wrong value, with the facts that follow it in the message."""
    return setting(name, value, f"{name}: found {value!r} … {facts}")


def unknown(name: str, meant: str, value: Any = 1) -> Case:
    """A misspelled setting."""
    return Case(name, f"{name}: unknown setting (did you mean '{meant}'?)", {name: value})


def table(id: str, content: Any, says: str, settings: dict[str, Any] | None = None, name: str = "train.csv", **more: Any) -> Case:
    """A run on another table."""
    return Case(id, says, {"data.train": name} | (settings or {}), {name: content}, **more)


def jsonl(id: str, line: str, says: str, good: str = JSONL, **more: Any) -> Case:
    """A line after a valid JSONL file of 16 lines."""
    return table(id, good + line, says, name="train.jsonl", **more)


def row(number: int, line: str, good: str = CSV) -> str:
    """The valid table with another line at `number`, counted from 1."""
    lines = good.splitlines(keepends=True)
    lines[number - 1] = line
    return "".join(lines)


def predict(*more: str, source: str = "train.csv", output: str = "answers.csv") -> tuple[str, ...]:
    return ("predict", "classifier", "--input", source, "--output", output, *more)


def finished_run(path: Path) -> None:
    path.mkdir()
    (path / "result.json").write_text('{"metrics": {}}')
    (path / "config.yaml").write_text("model: m\n")


def set_dotted(document: dict[str, Any], name: str, value: Any) -> None:
    *folders, last = name.split(".")
    for folder in folders:
        document = document.setdefault(folder, {})
    if value is GONE:
        del document[last]
    else:
        document[last] = copy.deepcopy(value)


def prepare(settings: dict[str, Any], files: dict[str, Any] | None = None, valid: dict[str, Any] = VALID) -> None:
    """Write `run.yaml`, a valid document with some settings changed, and the files."""
    document = copy.deepcopy(valid)
    for name, value in settings.items():
        set_dotted(document, name, value)
    Path("run.yaml").write_text(yaml.safe_dump(document))
    for name, content in (files or {}).items():
        if content is None:
            Path(name).unlink()
        elif isinstance(content, Callable):  # type: ignore[arg-type]
            content(Path(name))
        else:
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def listing(folder: Path) -> dict[str, str]:
    """Every file and folder, with the content's hash."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")}


def missing(says: str, message: str) -> list[str]:
    """The facts that are not in the message, or not after the facts before them."""
    lost, rest = [], message
    for fact in says.split(" … "):
        _, found, after = rest.partition(fact)
        if not found:
            lost.append(fact)
        else:
            rest = after
    return lost


def check(case: Case, valid: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    """Run a case in the current folder: exit status 2, one message with the facts, and nothing written."""
    prepare(case.settings, case.files, valid)
    before = listing(Path())
    capfd.readouterr()
    status = exit_status(*case.run)
    out, message = capfd.readouterr()
    assert (status, out) == (2, ""), message
    assert "Traceback" not in message
    assert missing(case.says, message) == [], message
    assert [text for text in case.silent if text in message] == [], message
    assert message.lower().count("error: ") == case.errors, message
    assert listing(Path()) == before

"""Reads prepared files and serves translations; needs only Python's standard library."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import Channel


def texts_of(path: str, most: int | None = None, column: str = "text") -> list[str]:
    """Return a column of a prepared file, or its first rows."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)][:most]


def pairs_of(path: str, source: str, target: str, most: int | None = None) -> tuple[list[str], list[str]]:
    """Return sources and targets of a JSONL file of pairs, or of its first rows."""
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()][:most]
    return [row[source] for row in rows], [row[target] for row in rows]


def serve_translations(channel: Channel, translate: Callable[[list[str]], list[str]]) -> None:
    """Translate all rows of the file in each turn; a few of them before the first turn."""
    settings = channel.settings
    texts, _ = pairs_of(settings["test"], *settings["columns"], settings.get("rows"))
    translate(texts[:8])

    def turn(_: dict[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        found = translate(texts)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "rows_per_second": len(texts) / seconds, "translations": found}

    channel.serve(turn)

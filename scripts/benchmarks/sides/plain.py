"""Reading prepared files with Python alone."""

import csv
import json
from pathlib import Path


def texts_of(path: str, most: int | None = None, column: str = "text") -> list[str]:
    """A column of a prepared file, or its first rows."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [row[column] for row in csv.DictReader(file)][:most]


def pairs_of(path: str, source: str, target: str, most: int | None = None) -> tuple[list[str], list[str]]:
    """Both sides of a JSONL file of pairs, or of its first rows."""
    with Path(path).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()][:most]
    return [row[source] for row in rows], [row[target] for row in rows]

"""Read the log of a run, which may be incomplete because the run was killed or is still running."""

import json
from pathlib import Path
from typing import Any

from nlp_transfer.security.file_locks import read_record


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `log.jsonl` that can be read, without an incomplete last line.

    Raises:
        OSError: The file cannot be opened as a regular file, or is too large.
    """
    lines = []
    for text in read_record(path).decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines

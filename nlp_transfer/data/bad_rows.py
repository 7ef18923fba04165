"""Reject or skip unusable rows (`data.on_bad_rows`), and list skipped rows in `skipped_rows.csv`."""

import csv
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from io import TextIOWrapper
from pathlib import Path

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.atomic_files import replacing, retry_while_full
from nlp_transfer.utils.errors import BadRow, Problems

SKIPPED_ROWS = "skipped_rows.csv"
SHOWN = 5  # skipped rows printed by commands that write no `skipped_rows.csv`
SKIP_HINT = "  data.on_bad_rows: skip would skip such rows and count them"


def check_rows(
    rows: Rows, role: str, data: DataConfig, check: Callable[[Rows, Problems], None], problems: Problems
) -> Rows:  # fmt: skip
    """Return the usable rows. Bad rows are skipped if `data.on_bad_rows` is `skip`; if not, they are added to `problems`.

    Args:
        role: Name of the split, for messages.
        check: Adds the problems of rows. It is called again after rows are skipped, since its result may depend on the remaining
            rows (for example, on their set of labels).
    """
    while True:
        faults = Problems(skipped={} if data.on_bad_rows == "skip" else None)
        if len(rows):
            check(rows, faults)
        if not faults.skipped:
            break
        rows = rows.without(faults.skipped)
    faults.summarize(len(rows))
    problems.merge(faults)
    if not len(rows):
        examples = "; ".join(map(str, rows.skipped[:3]))
        problems.add(
            f"data.{role}: none of {len(rows.skipped):,} rows can be used: {count_kinds(rows.skipped)}, such as {examples}"
        )
    return rows


def check_group(train: Rows, group: str | None, problems: Problems) -> None:
    """Add a problem for each row with an empty cell in the column `data.group`."""
    for row, value in enumerate(train.columns[group] if group else ()):
        if value is None or not str(value).strip():
            problems.add_row(
                row, train.bad(row, str(group), "the cell is empty; allowed: the group of the row", "without a group")
            )


def check_filter(data: DataConfig, filters: Collection[str], problems: Problems) -> None:
    """Add a problem if `data.filter` contains filters that the task does not have."""
    if unknown := [name for name in data.filter or () if name not in filters]:
        problems.add(
            f"data.filter: found {', '.join(unknown)}, but this task has no such filter (filters apply to tasks that generate "
            "text); allowed: null. To skip rows with an empty text, set data.on_bad_rows: skip"
        )


def describe_skipped(role: str, rows: Rows) -> list[str]:
    """Return a line that counts the skipped rows of a split by kind; a warning if more than half of the rows were skipped."""
    if not (skipped := len(rows.skipped)):
        return []
    line = f"{role}: {skipped:,} of {skipped + len(rows):,} rows skipped: {count_kinds(rows.skipped)}"
    if skipped <= len(rows):
        return [line]
    return [f"warning: {line}. That is more than half: check data.{role} and the columns that the task names"]


def name_skipped(rows: Rows) -> list[str]:
    """Return lines that describe the first skipped rows of a split and count the others."""
    more = [f"... and {len(rows.skipped) - SHOWN:,} more"] if len(rows.skipped) > SHOWN else []
    return [*map(str, rows.skipped[:SHOWN]), *more]


def count_kinds(skipped: Sequence[BadRow]) -> str:
    """Return how many rows of each kind were skipped, such as `2 with an empty text, 1 without a label`."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(bad.kind for bad in skipped).most_common())


def write_skipped(folder: Path, skipped: Sequence[tuple[str, BadRow]]) -> None:
    """Write `skipped_rows.csv` if rows were skipped.

    Args:
        folder: Folder of the file.
        skipped: Skipped rows, each as a pair: the name of its split in `data`, and the row.
    """
    if not skipped:
        return

    def write() -> None:
        with replacing(folder / SKIPPED_ROWS) as file:
            text = TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
            writer = csv.writer(text)
            writer.writerow(("split", "file", "row", "column", "reason"))
            for split, bad in skipped:
                writer.writerow((split, redact(bad.file), bad.row or "", bad.column or "", redact(bad.reason)))
            text.detach()

    retry_while_full(write, SKIPPED_ROWS, folder)

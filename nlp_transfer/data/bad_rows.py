"""Rows that cannot be used: refused or skipped (`data.on_bad_rows`), counted, and written to `skipped_rows.csv`."""

import csv
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from io import TextIOWrapper
from pathlib import Path

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.atomic_files import patiently, replacing
from nlp_transfer.utils.errors import BadRow, Problems

SKIPPED_ROWS = "skipped_rows.csv"
SHOWN = 5  # skipped rows that are named where no file lists them
SKIP_HINT = "  data.on_bad_rows: skip leaves such rows out and counts them"


def check_rows(
    rows: Rows, role: str, data: DataConfig, check: Callable[[Rows, Problems], None], problems: Problems
) -> Rows:  # fmt: skip
    """The rows that can be used: with `data.on_bad_rows: skip` the bad ones are dropped, else they are added to `problems`.

    Args:
        role: the split, for messages.
        check: adds what is wrong with rows. It is called again with the rows that are left, since what it finds may depend on
            all of them, as the labels of train do.
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
        problems.add(f"data.{role}: no row is left of {len(rows.skipped):,}: {_count_kinds(rows.skipped)}, such as {examples}")
    return rows


def check_group(train: Rows, group: str | None, problems: Problems) -> None:
    """Adds rows whose cell in the column `data.group` is empty."""
    for row, value in enumerate(train.columns[group] if group else ()):
        if value is None or not str(value).strip():
            problems.add_row(
                row, train.bad(row, str(group), "the cell is empty; allowed: the group of the row", "without a group")
            )


def check_filter(data: DataConfig, filters: Collection[str], problems: Problems) -> None:
    """Adds those of `data.filter` that are not among the `filters` of the task."""
    if unknown := [name for name in data.filter or () if name not in filters]:
        problems.add(
            f"data.filter: found {', '.join(unknown)}, which this task does not have; it is about pairs of a source and its "
            "translation. Allowed: null; rows with an empty text can be left out by data.on_bad_rows: skip"
        )


def describe_skipped(role: str, rows: Rows) -> list[str]:
    """A line that counts the skipped rows of a split's file by kind; a warning where they are more than half."""
    if not (skipped := len(rows.skipped)):
        return []
    line = f"{role}: {skipped:,} of {skipped + len(rows):,} rows skipped: {_count_kinds(rows.skipped)}"
    if skipped <= len(rows):
        return [line]
    return [f"warning: {line}. That is more than half: check data.{role} and the columns that the task names"]


def name_skipped(rows: Rows) -> list[str]:
    """A line for each of the first skipped rows of a split's file, and one that counts the others."""
    more = [f"... and {len(rows.skipped) - SHOWN:,} more"] if len(rows.skipped) > SHOWN else []
    return [*map(str, rows.skipped[:SHOWN]), *more]


def _count_kinds(skipped: Sequence[BadRow]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(bad.kind for bad in skipped).most_common())


def write_skipped(folder: Path, skipped: Sequence[tuple[str, BadRow]]) -> None:
    """Writes the skipped rows, each with the split that its file was given for, to `skipped_rows.csv`; nothing where there are
    none."""
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

    patiently(write, SKIPPED_ROWS, folder)

"""Check the columns of a task: every setting names another column, and cells with inputs are text."""

from collections.abc import Iterable, Sequence

from nlp_transfer.data.sources.file_reading import UNDECODED, undecoded
from nlp_transfer.data.sources.in_memory import plain_cell
from nlp_transfer.data.sources.rows import EMPTY_TEXT, NO_TEXT, Rows
from nlp_transfer.utils.errors import Problems, with_type


def check_distinct(columns: Iterable[tuple[str, str | None]], problems: Problems) -> None:
    """Report settings that name the column of an earlier setting.

    Args:
        columns: Names of settings of the task, each with its column; None for a setting without one.
    """
    first: dict[str, str] = {}
    for setting, column in columns:
        if column in first:
            problems.add(f"task.{setting}: found {column!r}, which is task.{first[column]} as well; allowed: another column")
        elif column is not None:
            first[column] = setting


def check_texts(rows: Rows, names: Sequence[str], problems: Problems) -> None:
    """Report cells of these columns that are empty or not text."""
    for name in names:
        for row, cell in enumerate(rows.columns[name]):
            if not isinstance(cell, str):
                is_missing = plain_cell(cell) is None
                fault, kind = f"found {'nothing' if is_missing else with_type(cell)}", EMPTY_TEXT if is_missing else NO_TEXT
            elif not cell.strip():
                fault, kind = "the cell is empty", EMPTY_TEXT
            elif broken := undecoded(cell, "utf-8"):
                fault, kind = broken, UNDECODED
            else:
                continue
            problems.add_row(row, rows.bad(row, name, f"{fault}; allowed: text", kind))

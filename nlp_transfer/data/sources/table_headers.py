"""Check the header of a table for duplicate names and signs of a wrong separator."""

from collections import Counter
from pathlib import Path

from nlp_transfer.data.sources.file_reading import ENCODING, undecoded
from nlp_transfer.data.sources.json_rows import check_count
from nlp_transfer.settings.schema import SEPARATORS
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import Problems, UserError, shorten

NAMES = {mark: name for name, mark in SEPARATORS.items() if name.isalpha()}


def check_header(path: Path, header: list[str], encoding: str) -> None:
    """Raise a UserError if the header is blank, or has too many names, duplicate names or names that cannot be decoded."""
    problems = Problems()
    if not header:
        problems.add(f"{path}, row 1: the line is blank; allowed: a header with the names of the columns")
    check_count(header, str(path))
    for name, times in Counter(header).items():
        if times > 1:
            problems.add(f"{path}: column {shorten(name)} occurs twice in the header; allowed: each name once")
        if fault := undecoded(name, encoding):
            problems.add(f"{path}, row 1, column {shorten(name)}: {fault}; {ENCODING}")
    problems.raise_if_any()


def check_separator(path: Path, header: list[str], delimiter: str) -> None:
    """Raise a UserError if the header indicates another separator."""
    first = header[0] if header else ""
    if first.lower().startswith("sep=") and not any(header[1:]):
        mark = first[4:] or delimiter
        raise UserError(
            f"{path}, row 1: found {first!r}, a line for spreadsheet programs instead of a header; remove this line, and set "
            f"data.delimiter: {NAMES.get(mark, mark)!r} (--data.delimiter {NAMES.get(mark, repr(mark))})"
        )
    others = [mark for mark in ";\t|," if mark != delimiter and _separates(mark, first)] if len(header) == 1 else []
    if others:
        mark = max(others, key=first.count)
        raise UserError(
            f"{path}, row 1: the header is one cell, {shorten(first)}, with {NAMES[mark]} in it, but columns are separated by "
            f"{NAMES[delimiter]} by default; set data.delimiter: {NAMES[mark]} (--data.delimiter "
            f"{NAMES[mark]}), or data.delimiter: {NAMES[delimiter]} if it is the name of one column"
        )


def _separates(mark: str, header: str) -> bool:
    """Return whether a header looks like names separated by `mark`, not like a phrase with punctuation."""
    names = header.split(mark)
    return len(names) > 1 and names[0] != "" and all(name == name.strip() for name in names)


def named_columns(path: Path, header: list[str]) -> list[str | None]:
    """Return the names of the columns; None for columns that are ignored.

    If several columns have no name, they are ignored: spreadsheet programs create such columns at the end of rows.
    """
    unnamed = header.count("")
    if unnamed < 2:
        return list(header)
    say_once(f"{path}: {unnamed} columns have no name in the header and are not read")
    return [name or None for name in header]

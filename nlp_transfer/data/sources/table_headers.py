"""The header of a table: names that tell columns apart, and signs that the table was read with the wrong separator."""

from collections import Counter
from pathlib import Path

from nlp_transfer.data.sources.file_reading import ENCODING, undecoded
from nlp_transfer.data.sources.json_rows import check_count
from nlp_transfer.settings.schema import SEPARATORS
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import Problems, UserError, shorten

NAMES = {mark: name for name, mark in SEPARATORS.items() if name.isalpha()}


def check_header(path: Path, header: list[str], encoding: str) -> None:
    problems = Problems()
    if not header:
        problems.add(f"{path}, row 1: the line is blank; allowed: a header with the names of the columns")
    check_count(header, str(path))
    for name, times in Counter(header).items():
        if times > 1:
            problems.add(f"{path}: column {shorten(name)} stands twice in the header; allowed: each name once")
        if fault := undecoded(name, encoding):
            problems.add(f"{path}, row 1, column {shorten(name)}: {fault}; {ENCODING}")
    problems.raise_if_any()


def check_separator(path: Path, header: list[str], delimiter: str) -> None:
    """Raises a UserError where the header shows that cells are separated by another character, or by one named in it."""
    first = header[0] if header else ""
    if first.lower().startswith("sep=") and not any(header[1:]):
        mark = first[4:] or delimiter
        raise UserError(
            f"{path}, row 1: found {first!r}, a line for spreadsheet programs in place of the header; remove this line, and set "
            f"data.delimiter: {NAMES.get(mark, mark)!r} (--data.delimiter {NAMES.get(mark, repr(mark))})"
        )
    found = [mark for mark in ";\t|," if mark != delimiter and _separates(mark, first)] if len(header) == 1 else []
    if found:
        mark = max(found, key=first.count)
        raise UserError(
            f"{path}, row 1: the header is one cell, {shorten(first)}, with {NAMES[mark]} in it; columns are separated by "
            f"{NAMES[delimiter]} unless data.delimiter says otherwise; set data.delimiter: {NAMES[mark]} (--data.delimiter "
            f"{NAMES[mark]}), or data.delimiter: {NAMES[delimiter]} where it is one column of that name"
        )


def _separates(mark: str, header: str) -> bool:
    """Whether a header looks like names with this character between them, and not like a phrase with punctuation."""
    names = header.split(mark)
    return len(names) > 1 and names[0] != "" and all(name == name.strip() for name in names)


def named_columns(path: Path, header: list[str]) -> list[str | None]:
    """The names of the columns, None for those that are left out: several columns without a name, as of a spreadsheet that ends
    its rows in separators."""
    unnamed = header.count("")
    if unnamed < 2:
        return list(header)
    say_once(f"{path}: {unnamed} columns have no name in the header and are not read")
    return [name or None for name in header]

"""Words, tags and entities: read them from cells and files, and convert tags to entities and back."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nlp_transfer.data.augmentation import UNSPACED
from nlp_transfer.utils.errors import UserError, shorten

Span = tuple[str, int, int]  # label, start, end (exclusive)
SCHEMES = {"IOB2": ("B", "I"), "BIOES": ("B", "I", "E", "S")}
OUTSIDE = "O"
# The prefixes that stand for the same position in an entity, in order of preference, where a model lacks the first one.
INSTEAD = {"B": "BSI", "I": "IEB", "E": "EIB", "S": "SBI"}
TAG_FORM = "O, or B-, I-, E- or S- and a type, such as B-person"
COMMENT = "-DOCSTART-"  # first word of a line between documents


def as_list(cell: Any) -> list[Any] | None:
    """Return the elements of a list, or of a list written as JSON; None for other cells."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    return list(cell) if isinstance(cell, (list, tuple)) else None


def words_of(cell: Any) -> list[Any] | None:
    """Return the elements of a list, or the words of a text with spaces between them; None for other cells."""
    elements = as_list(cell)
    return cell.split() if elements is None and isinstance(cell, str) else elements


def spans_of(cell: Any) -> list[Span]:
    """Return the spans in a cell: a list of objects with `start`, `end` and `label`, or an object of three lists.

    Raises:
        ValueError: If the cell holds something else; the message says what.
    """
    if isinstance(cell, str) and cell.lstrip().startswith("{"):
        cell = json.loads(cell)
    if isinstance(cell, Mapping):
        names = ("start", "end", "label")
        rows = zip(*(as_list(cell.get(name)) or [] for name in names), strict=True)
        elements: Any = [dict(zip(names, row, strict=True)) for row in rows]
    else:
        elements = as_list(cell)
    if elements is None:
        raise ValueError(shorten(cell))
    spans: list[Span] = []
    for element in elements:
        values: list[Any] = [element.get(name) for name in ("label", "start", "end")] if isinstance(element, Mapping) else []
        if [type(value) for value in values] != [str, int, int] or not values[0].strip():
            raise ValueError(shorten(element))
        spans.append((values[0].strip(), values[1], values[2]))
    return spans


def split_tag(tag: str) -> tuple[str, str] | None:
    """Return the prefix and the type of a tag, `O` and an empty type for `O`; None for a tag of another form."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and label.strip() and prefix in INSTEAD else None


def find_entities(tags: Iterable[tuple[str, str]]) -> list[Span]:
    """Return the entities in a sequence of prefixes and types, by the lenient rule of CoNLL's `conlleval`.

    An entity also begins where a tag inside of an entity does not continue the one before. This is seqeval's default mode.
    """
    spans: list[Span] = []
    before, open_label, start = OUTSIDE, "", 0
    end = 0
    for end, (prefix, label) in enumerate([*tags, (OUTSIDE, "")]):
        if before != OUTSIDE and (prefix in "OBS" or before in "ES" or label != open_label):
            spans.append((open_label, start, end))
            before = OUTSIDE
        if prefix != OUTSIDE and before == OUTSIDE:
            start = end
        before, open_label = prefix, label
    return spans


def write_tags(spans: Iterable[Span], words: int, scheme: str) -> list[tuple[str, str]]:
    """Return the prefix and type of each word for entities that do not overlap, with word positions."""
    tags = [(OUTSIDE, "")] * words
    last, single = ("E", "S") if scheme == "BIOES" else ("I", "B")
    for label, start, end in spans:
        prefixes = [single] if end - start == 1 else ["B", *"I" * (end - start - 2), last]
        tags[start:end] = [(prefix, label) for prefix in prefixes]
    return tags


@cache
def _word_pattern() -> re.Pattern[str]:
    """Return the pattern of a word of a text: a character of a script without spaces, a run of word characters, or a mark.

    Combining marks belong to the run, as in Devanagari.
    """
    singles = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*UNSPACED, (0xF900, 0xFAFF), (0x20000, 0x323AF)))
    marks = "".join(chr(point) for point in range(0x300, 0x20000) if unicodedata.category(chr(point)).startswith("M"))
    marks = re.sub(f"[{singles}]", "", marks)
    return re.compile(rf"[{singles}]|(?:(?![{singles}])[\w{marks}])+|\S")


def split_words(text: str) -> list[tuple[int, int]]:
    """Return the start and the end of each word of a text, in characters."""
    return [match.span() for match in _word_pattern().finditer(text)]


def read_conll(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the sentences of a CoNLL file, with their `tokens` and `tags`.

    A line holds a word and its columns, separated by tabs or spaces; the last column is the tag. Blank lines separate sentences.

    Raises:
        UserError: If a line has one column, or the file is not UTF-8.
    """
    words: list[str] = []
    tags: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                cells = [cell.strip(" ") for cell in line.rstrip("\r\n").split("\t")] if "\t" in line.strip() else line.split()
                if cells and cells[0] == COMMENT:
                    cells = []
                if len(cells) == 1 and cells[0]:
                    raise UserError(
                        f"{path}, line {number}: found {shorten(line.strip())}, one column; allowed: a word and its tag, "
                        "separated by a tab or spaces, or an empty line between sentences"
                    )
                if any(cells):
                    words.append(cells[0])
                    tags.append(cells[-1])
                elif words:
                    yield {"tokens": words, "tags": tags}
                    words, tags = [], []
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 ({error}); allowed: a CoNLL file in UTF-8") from error
    if words:
        yield {"tokens": words, "tags": tags}


def type_names(tags: Sequence[str]) -> list[str]:
    """Return the distinct types of tags, in their order."""
    return list(dict.fromkeys(parts[1] for tag in tags if (parts := split_tag(tag)) and parts[1]))

"""Words, tags and entities: read them from cells and files, and convert tags to entities and back."""

import json
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from nlp_transfer.data.augmentation import UNSPACED
from nlp_transfer.data.sources.file_reading import UNDECODED, undecoded
from nlp_transfer.data.sources.rows import EMPTY_TEXT, NO_TEXT
from nlp_transfer.data.sources.task_formats import Record
from nlp_transfer.tasks.common.labels import configured_labels
from nlp_transfer.utils.errors import Fault, UserError, shorten

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


def input_fault(cell: Any, is_text: bool) -> tuple[str, str] | None:
    """Return the reason and the kind of an unusable text or list of words."""
    kind = "text" if is_text else "a list of words"
    words = ([cell] if isinstance(cell, str) else None) if is_text else words_of(cell)
    if words is None:
        return f"found {shorten(cell)} ({type(cell).__name__}); allowed: {kind}", NO_TEXT
    if not words or (is_text and not cell.strip()):
        return f"found {shorten(cell)}, which is empty; allowed: {kind}", EMPTY_TEXT
    for word in words:
        if not isinstance(word, str) or not word:
            return f"found the word {shorten(word)}; allowed: words that are not empty", NO_TEXT
        if fault := undecoded(word, "utf-8"):
            return f"{fault}; allowed: {kind}", UNDECODED
    return None


def spans_of(cell: Any) -> list[Span]:
    """Return the spans in a cell, by their start: a list of objects with `start`, `end` and `label`.

    Raises:
        ValueError: If the cell holds something else; the message says what was found and what is allowed.
    """
    spans: list[Span] = []
    for element in [cell] if (elements := as_list(cell)) is None else elements:
        values: list[Any] = [element.get(name) for name in ("label", "start", "end")] if isinstance(element, Mapping) else []
        if [type(value) for value in values] != [str, int, int] or not values[0].strip():
            allowed = '[{"start": 0, "end": 4, "label": "person"}], or [] for a text without entities'
            raise ValueError(f"found {shorten(element)}; allowed: {allowed}")
        spans.append((values[0].strip(), values[1], values[2]))
    return sorted(spans, key=lambda span: span[1:])


def span_fault(spans: list[Span], length: int) -> str | None:
    """Return a message on the first span that is empty, is outside of a text of `length` or overlaps the one before."""
    before = 0
    for label, start, end in spans:
        if not 0 <= start < end <= length:
            return f"found the span {start} to {end} ({label}); allowed: 0 <= start < end <= {length}, the length of the text"
        if start < before:
            return f"found the span {start} to {end} ({label}), which overlaps another one; allowed: spans that do not overlap"
        before = end
    return None


def spans_in_words(spans: Iterable[Span], words: Sequence[tuple[int, int]]) -> list[Span]:
    """Convert spans of characters, by their start, to spans of complete words. Of two in one word, the first one counts.

    Args:
        words: Start and end of each word in characters.
    """
    starts, ends = [word[0] for word in words], [word[1] for word in words]
    taken, converted = 0, []
    for label, start, end in spans:
        first = max(taken, bisect_right(ends, start))
        taken = max(first, bisect_left(starts, end))
        converted += [(label, first, taken)] if first < taken else []
    return converted


def tags_of(cell: Any, names: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the prefix and the type of each tag in a cell. Tags may be indices of `names`.

    Raises:
        ValueError: If a tag cannot be read; the message says what was found and what is allowed.
    """
    if (elements := words_of(cell)) is None:
        raise ValueError(f"found {shorten(cell)}; allowed: a list of tags")
    tags = []
    for element in elements:
        tag = element
        if (isinstance(tag, int) and not isinstance(tag, bool)) or (isinstance(tag, str) and tag.isdecimal()):
            if names is None:
                raise ValueError(f"found the integer tag {tag}; allowed: names of tags; or set task.tag_names to the names")
            if not 0 <= int(tag) < len(names):
                raise ValueError(f"found the tag {tag}; allowed: 0 to {len(names) - 1}, indices of task.tag_names")
            tag = names[int(tag)]
        if (parts := split_tag(tag) if isinstance(tag, str) else None) is None:
            raise ValueError(f"found the tag {shorten(tag)}; allowed: {TAG_FORM}")
        tags.append(parts)
    return tags


def split_tag(tag: str) -> tuple[str, str] | None:
    """Return the prefix and the type of a tag, `O` and an empty type for `O`; None for a tag of another form."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    return (prefix, label) if dash and label.strip() and prefix in INSTEAD else None


def settings_of_model(config: Any) -> dict[str, Any]:
    """Return the settings of the task for a model that other programs have saved.

    Raises:
        UserError: If its labels are not tags of entities.
    """
    names = [str(name) for name in configured_labels(config)]
    if unknown := [name for name in names if split_tag(name) is None]:
        raise UserError(f"model: {config.architectures[0]}: config.json has the label {unknown[0]!r}; allowed: {TAG_FORM}")
    scheme = "BIOES" if any(name[0] in "ES" for name in names) else "IOB2"
    return {"labels": type_names(names), "scheme": scheme, "text": "text"}


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


def text_and_words(cell: Any, is_text: bool) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a row, with spaces between listed words, and the start and the end of each word."""
    if is_text:
        return cell, split_words(cell)
    words = words_of(cell) or []
    ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
    return " ".join(words), [(end - len(word), end) for word, end in zip(words, ends, strict=True)]


def read_conll(path: Path) -> Iterator[Record]:
    """Yield the sentences of a CoNLL file, with their `tokens` and `tags`; the fault of a sentence with a line of one column.

    A line holds a word and its columns, separated by tabs or spaces; the last column is the tag. Blank lines separate sentences.

    Raises:
        UserError: If the file is not UTF-8.
    """
    words: list[str] = []
    tags: list[str] = []
    fault: Fault | None = None
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                cells = [cell.strip(" ") for cell in line.rstrip("\r\n").split("\t")] if "\t" in line.strip() else line.split()
                if cells and cells[0] == COMMENT:
                    cells = []
                if any(cells):
                    words.append(cells[0])
                    tags.append(cells[-1])
                    if len(cells) == 1 and fault is None:
                        reason = f"line {number}: found {shorten(line.strip())}, one column; allowed: a word and its tag, "
                        reason += "separated by a tab or spaces, or an empty line between sentences"
                        fault = Fault("with a line of one column", reason)
                elif words:
                    yield fault or {"tokens": words, "tags": tags}
                    words, tags, fault = [], [], None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: is not UTF-8 ({error}); allowed: a CoNLL file in UTF-8") from error
    if words:
        yield fault or {"tokens": words, "tags": tags}


def type_names(tags: Sequence[str]) -> list[str]:
    """Return the distinct types of tags, in their order."""
    return list(dict.fromkeys(parts[1] for tag in tags if (parts := split_tag(tag)) and parts[1]))

"""Read questions with their answers: files in SQuAD's format, and cells of tables."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nlp_transfer.data.sources.in_memory import plain_cell
from nlp_transfer.data.sources.task_formats import Record
from nlp_transfer.models.verification.untrusted_json import parse_limited
from nlp_transfer.utils.errors import Fault, prefixed, shorten

MAX_BYTES = 2**31
DAMAGED = "that are not as in SQuAD"  # kind of bad rows
ALLOWED = (
    '{"text": [...], "answer_start": [...]}, with a start in characters for each text; two empty lists if there is no answer'
)


class Answer(NamedTuple):
    """An answer: its text, and the position of its first character in the context."""

    text: str
    start: int


def read_squad(path: Path) -> Iterator[Record] | None:
    """Read a JSON file in the format of SQuAD 1.1 or 2.0 (Rajpurkar et al. 2016, 1606.05250; 2018, 1806.03822).

    Returns:
        Columns `id`, `title`, `question`, `context` and `answers` of each question, and the fault of each part that is not as in
        SQuAD; None if the file has another format.

    Raises:
        UserError: The file is not JSON.
    """
    with path.open("rb") as file:
        if not any(b'"paragraphs"' in line for line in file):
            return None
    with prefixed(str(path)):
        document = parse_limited(path, MAX_BYTES, strict=True)
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list) or not any(isinstance(article, dict) and "paragraphs" in article for article in articles):
        return None
    return _questions(articles)


def _questions(articles: list[Any]) -> Iterator[Record]:
    for number, article in enumerate(articles):
        for index, paragraph in enumerate(_items(article, "paragraphs", f"data[{number}]")):
            inside = f"data[{number}].paragraphs[{index}]"
            for question in _items(paragraph, "qas", inside):
                if isinstance(question, Fault):
                    yield question
                    continue
                if not isinstance(question, dict):
                    reason = f"{inside}.qas: found {shorten(question)}; allowed: an object with `question` and `answers`"
                    yield Fault(DAMAGED, reason)
                    continue
                unanswerable = question.get("is_impossible") is True
                yield {
                    "id": question.get("id"),
                    "title": article.get("title"),
                    "question": question.get("question"),
                    "context": paragraph.get("context"),
                    "answers": [] if unanswerable else question.get("answers"),
                }


def _items(value: Any, name: str, place: str) -> list[Any]:
    """Return the list `name` of an object; if there is none, a list with this fault, or with the fault that `value` is."""
    if isinstance(value, Fault):
        return [value]
    items = value.get(name) if isinstance(value, dict) else None
    if not isinstance(items, list):
        return [Fault(DAMAGED, f"{place}: found {shorten(value)}; allowed: an object with a list `{name}`")]
    return items


def parse_answers(cell: Any, start: Any = None, has_start: bool = False) -> list[Answer]:
    """Return the answers in a cell of a table; an empty list if the question has none.

    Args:
        cell: An object or its JSON text, in the form of `ALLOWED`, or a list of objects, each with one `text` and `answer_start`.
        start: The cell of the column with positions.
        has_start: Whether there is such a column. `cell` is then a text or a list of texts.

    Raises:
        ValueError: The cells have another form; the message says what was found.
    """
    if has_start:
        texts, starts = _as_list(cell), [value for value in _as_list(start) if value not in (-1, "-1")]
        return _pairs(texts, starts, f"found {shorten(cell)} with the start {shorten(start)}")
    value = cell
    if isinstance(cell, str):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            raise ValueError(f"found {shorten(cell)}") from None
    fault = f"found {'nothing' if plain_cell(cell) is None else shorten(cell)}"
    if isinstance(value, Mapping) and {"text", "answer_start"} <= value.keys():
        return _pairs(_as_list(value["text"]), _as_list(value["answer_start"]), fault)
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, list) and all(isinstance(item, Mapping) and {"text", "answer_start"} <= item.keys() for item in items):
        return _pairs([item["text"] for item in items], [item["answer_start"] for item in items], fault)
    raise ValueError(fault)


def _as_list(value: Any) -> list[Any]:
    """Return a list or array as a list, one value as a list, and a missing or empty value as an empty list."""
    value = plain_cell(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    return [] if value is None or value == "" else [value]


def _pairs(texts: list[Any], starts: list[Any], fault: str) -> list[Answer]:
    positions = [_position(start) for start in starts]
    if len(texts) != len(starts) or None in positions or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(fault)
    return [Answer(text, start) for text, start in zip(texts, positions, strict=True) if start is not None]


def _position(value: Any) -> int | None:
    """Return a position as an int, or None if it is not one. Tables with missing cells hold positions as floats."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    is_whole = not isinstance(value, bool) and math.isfinite(number) and number == int(number) and number >= 0
    return int(number) if is_whole else None


def misplaced(answer: Answer, context: str) -> str | None:
    """Return why an answer is not at its position in the context, or None if it is."""
    text, start = answer
    there = context[start : start + len(text)]
    if there == text:
        return None
    actual = context.find(text)
    hint = f"the context has the answer at {actual}" if actual >= 0 else "the context does not have the answer"
    return (
        f"found the answer {shorten(text)} at {start}, where the context has {shorten(there)}; allowed: the position of the "
        f"answer's first character, counted from 0 in characters; {hint}"
    )

"""The raw document that describes a run: read from YAML, with overrides by dotted name merged in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.config import Document, shorten
from nlp_transfer.errors import UserError


def read_document(path: str | Path) -> Document:
    """The raw document in a YAML file.

    Raises:
        UserError: the file is missing, is no YAML, or holds something other than settings by name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a YAML file that describes the run") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a YAML file ({error})") from None
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2020-13-45 is a ValueError
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"{shorten(document)} ({type(document).__name__})"
        raise UserError(f"{path}: found {found}; allowed: settings by name, such as `model: ...`")
    return document


class _StrictLoader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, which YAML loaders otherwise settle silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key if isinstance(key, (str, int)) else None)
        return super().construct_mapping(node, deep)


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`["--training.epochs", "5", "--task.text=review"]` as pairs of dotted name and value."""
    pairs: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise UserError(f"found {flag!r}; allowed: settings by their dotted name, such as --training.epochs 5")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name}: needs a value, such as --{name} VALUE")
            value = rest.pop(0)
        setting = name.split(".", 2)  # what comes third may be a label, and keeps its dashes
        pairs.append((".".join([part.replace("-", "_") for part in setting[:2]] + setting[2:]), _parse_value(value)))
    return pairs


def _parse_value(text: str) -> Any:
    """Numbers, booleans, null, lists and mappings as YAML reads them; anything else is text as it stands."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    bracketed = isinstance(value, (list, dict)) and text.lstrip().startswith(("[", "{"))  # "- " and "a: b" are text here
    quoted = isinstance(value, str) and text.lstrip().startswith(('"', "'"))
    plain = isinstance(value, (bool, int, float)) or text.strip().lower() in ("null", "~")
    return value if bracketed or quoted or plain else text


NAMED = ("task", "strategy")  # parts of a document that may be a name alone


def merge(document: Document, overrides: Sequence[tuple[str, Any]]) -> tuple[Document, list[str]]:
    """The document with the overrides put in, and notes about what that dropped.

    A changed `task.name` or `strategy.name` drops the settings of the old one: they would be unknown to the new one.
    Names are therefore put in first, in whatever order the flags came.
    """
    merged: Document = _copy(document)
    notes: list[str] = []
    named = [(f"{name}.name" if name in NAMED and isinstance(value, str) else name, value) for name, value in overrides]
    for name, value in sorted(named, key=lambda pair: not pair[0].endswith((*NAMED, ".name"))):
        *folders, last = name.split(".")
        place: Any = merged
        for depth in range(len(folders)):
            place = _enter(place, folders[: depth + 1], name)
        if isinstance(place, list):
            place[_index(place, last, name)] = value
            continue
        if last == "name" and place.get("name") not in (None, value):
            dropped = sorted(key for key in place if key != "name")
            notes.append(f"{name} changed from {place['name']} to {value}; dropped its settings: {', '.join(dropped) or 'none'}")
            place.clear()
        place[last] = value
    return merged, notes


def _enter(place: Any, path: list[str], name: str) -> Any:
    """What lies in `place` under the last word of `path`: made where there was nothing, written out where a name stood alone."""
    key: Any = _index(place, path[-1], name) if isinstance(place, list) else path[-1]
    inner = place[key] if isinstance(place, list) else place.get(key)
    if inner is None:
        inner = {}
    elif isinstance(inner, str) and (isinstance(place, list) or key in NAMED):
        inner = {"name": inner}
    if not isinstance(inner, (dict, list)):
        raise UserError(f"--{name}: {'.'.join(path)} is {shorten(inner)}, which has no settings of its own")
    place[key] = inner
    return inner


def _index(items: list[Any], text: str, name: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise UserError(f"--{name}: found {text!r}; allowed: a position from 0 to {len(items) - 1}")
    return int(text)


def _copy(value: Any) -> Any:
    """Containers are copied, so that a caller's document stays as it was; data frames and the like are not."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value

"""The raw document that describes a run: read from YAML, with overrides by dotted name merged in."""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.data.sources.file_reading import ENDINGS, SURROGATE, kind_of, read_start
from nlp_transfer.data.sources.portable_paths import relocate
from nlp_transfer.settings.schema import Document
from nlp_transfer.settings.validation import all_settings, suggest
from nlp_transfer.utils.errors import UserError, shorten

MAX_BYTES = 10 * 2**20  # of a file of settings
MAX_VALUES = 1_000_000  # once each alias (*name) stands for what it names
MAX_DEPTH = 50  # of settings inside each other
TOO_DEEP = f"this is nested more than {MAX_DEPTH} deep; allowed: at most {MAX_DEPTH}"
MAX_NUMBER = 1000  # characters of one that is no text


def read_document(path: str | Path) -> Document:
    """The raw document in a YAML file; the `config.yaml` of a run as `relocate` gives it.

    Raises:
        UserError: the file is missing, too large, no file or no YAML, or holds something other than settings by name.
    """
    path = Path(path)
    try:
        if kind := kind_of(path):
            raise UserError(f"{path}: cannot be read as a YAML file (is {kind}); give a file that describes the run")
        content = read_start(path, MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: is larger than {MAX_BYTES:,} bytes; allowed: a YAML file of at most that many")
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; give a YAML file that describes the run, or a table (of a hub: --data.train ID)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as a YAML file ({error}); allowed: settings in YAML, or a table ({', '.join(ENDINGS)})"
        ) from None
    try:
        document = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}{_describe_fault(error)}{_or_table(path)}") from None
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"{shorten(document)} ({type(document).__name__})"
        raise UserError(
            f"{path}: found {found}; allowed: settings by name, such as `model: ...`; the name of a table ends in "
            f"{', '.join(ENDINGS)}"
        )
    return relocate(document, path)


def _or_table(path: Path) -> str:
    """What to do with a file that is no YAML and whose name does not say that it is meant to be."""
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return ""
    return (
        f". The ending {path.suffix!r} is not that of a table, so the file was read as settings; allowed for tables: "
        f"{', '.join(ENDINGS)}, each also with .gz except .parquet (.tsv for columns separated by tabs, .jsonl for a JSON object "
        "on each line): rename the file"
    )


ADVICE = {
    "\\t": "indent with spaces: YAML allows no tabs there",
    "mapping values are not allowed": "a value that holds a colon and a space needs quotes around it, and what belongs to a "
    "setting is indented further than it",
    "that cannot start any token": "a value that begins with such a character needs quotes around it",
    "alias": "a value that begins with * needs quotes around it",
    "is given twice": "keep one of the two",
    "unexpected end of stream": "close the quote",
    "expected ',' or": "close the bracket",
    "expected": "settings of one level begin in the same column, and each is NAME: VALUE",
}  # by words of the parser's message: what to do


def _describe_fault(error: Exception) -> str:
    """Line, column, the fault and what to do, as they follow the name of the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f": is not valid YAML: {error}"
    problem = error.problem or error.context or "cannot be read"
    context = f" ({error.context})" if error.context and error.problem else ""
    advice = next((f"; {advice}" for words, advice in ADVICE.items() if words in problem + context), "")
    return f", line {mark.line + 1}, column {mark.column + 1}: is not valid YAML: {problem}{context}{advice}"


class _StrictLoader(yaml.SafeLoader):
    """Safe loading that refuses a key given twice, which YAML loaders otherwise settle silently; and documents that grow while
    they are read, hold themselves, or hold what no file can.

    Numbers are what a person would read: 010 (octal), 12:30 (base 60), 1_000, 0x1F, +1 and dates stay text. Where a number is
    expected, the schema makes one of text such as 010, 1_000 or 1e-4.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            raise yaml.composer.ComposerError(None, None, TOO_DEEP, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_data(self) -> Any:
        node = self.get_single_node()
        if node is None:
            return None
        _Measure().of(node)
        return self.construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):  # whatever Python says to !!bool maybe
            kind = node.tag.rpartition(":")[2]
            raise _refusal(node, f"found {shorten(node.value)}, which cannot be read as {kind}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`; what is taken over may be given again
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _refusal(key_node, f"found {shorten(key)} as a key; allowed: a name")
            if key in seen:
                raise _refusal(key_node, f"{key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _as_text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    return node.value


_StrictLoader.add_constructor("tag:yaml.org,2002:value", _as_text)  # a lone = is text
_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _KINDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(0|[1-9][0-9]*)$"), list("-0123456789"))
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"-?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$|-?\.inf$|\.nan$", re.IGNORECASE),
    list("-.0123456789"),
)


def _refusal(node: yaml.Node, why: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, why, node.start_mark)


class _Measure:
    """How many values a node stands for and how deep it goes, with every alias written out."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[int, int] | None] = {}

    def of(self, node: yaml.Node) -> tuple[int, int]:
        if id(node) in self.known:
            found = self.known[id(node)]
            if found is None:
                raise _refusal(node, "this value holds itself, by an alias")
            return found
        self.known[id(node)] = None
        values, depth = 1, 0
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        else:
            for part in node.value:
                for inner in part if isinstance(part, tuple) else (part,):
                    more, below = self.of(inner)
                    values, depth = values + more, max(depth, below + 1)
        if values > MAX_VALUES:
            raise _refusal(node, f"this stands for more than {MAX_VALUES:,} values, aliases counted each time; allowed: fewer")
        if depth > MAX_DEPTH:
            raise _refusal(node, TOO_DEEP)
        self.known[id(node)] = values, depth
        return values, depth


def _check_scalar(node: yaml.ScalarNode) -> None:
    if half := SURROGATE.search(node.value):
        raise _refusal(node, f"found {half.group()!a}, half of a character; allowed: the character itself")
    if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
        raise _refusal(
            node, f"found a number of {len(node.value):,} characters; allowed: at most {MAX_NUMBER:,}, or quotes around it"
        )


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


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
                known = {known for known, _, _ in all_settings()}
                raise UserError(f"--{name}: needs a value, such as --{name} VALUE{'' if name in known else suggest(name)}")
            value = rest.pop(0)
        if not all(name.split(".")):
            raise UserError(f"--{name}: a part of the name is empty; allowed: a dotted name, such as --training.epochs 5")
        setting = name.split(".", 2)  # what comes third may be a label, and keeps its dashes
        pairs.append((".".join([part.replace("-", "_") for part in setting[:2]] + setting[2:]), _parse_value(value)))
    return pairs


def _parse_value(text: str) -> Any:
    """Numbers, booleans, null, lists and mappings as YAML reads them; anything else is text as it stands."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError):
        return text
    bracketed = isinstance(value, (list, dict)) and text.lstrip().startswith(("[", "{"))  # "- " and "a: b" are text here
    quoted = isinstance(value, str) and text.lstrip().startswith(('"', "'"))
    # yes, no, on and off stay text: a label may be called so, and a setting that is true or false takes these words as well
    plain = (isinstance(value, (int, float)) and not isinstance(value, bool)) or text.strip().lower() in (
        "true",
        "false",
        "null",
        "~",
    )
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
            dropped = sorted(str(key) for key in place if key != "name")
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
    positions = [str(position) for position in range(len(items))]
    if text not in positions:
        allowed = f"a position from 0 to {len(items) - 1}" if items else "no position: the list is empty"
        raise UserError(f"--{name}: found {text!r}; allowed: {allowed}")
    return int(text)


def _copy(value: Any) -> Any:
    """Containers are copied, so that a caller's document stays as it was; data frames and the like are not."""
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value

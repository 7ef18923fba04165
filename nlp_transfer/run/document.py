"""Read the raw document of a run from strict YAML, and merge overrides by dotted name.

OmegaConf is unsuitable: it reads `no`, 010 and 12:30 as false, 8 and 750, expands `${oc.env:NAME}` in values, does not accept
data frames, and cannot merge into lists.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.data.sources.file_reading import ENDINGS, SURROGATE, kind_of, read_start
from nlp_transfer.data.sources.portable_paths import map_values, relocate
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import RunConfig, expand_name
from nlp_transfer.settings.validation import all_settings, suggest
from nlp_transfer.utils.errors import UserError, shorten

MAX_BYTES = 10 * 2**20  # size of a settings file
MAX_VALUES = 1_000_000  # after expanding all aliases (*name)
MAX_DEPTH = 50  # nesting of settings
TOO_DEEP = f"this is nested more than {MAX_DEPTH} levels deep; allowed: at most {MAX_DEPTH}"
MAX_NUMBER = 1000  # characters of a number


def as_document(config: RunConfig | Mapping[str, Any] | str | Path | None) -> Document:
    """Return a new document from a RunConfig (only the fields that were set), a document or a YAML file."""
    if isinstance(config, RunConfig):
        return {name: getattr(config, name) for name in config.model_fields_set}
    return read_document(config) if isinstance(config, (str, Path)) else dict(config or {})


def read_document(path: str | Path) -> Document:
    """Read a YAML file. Paths in the `config.yaml` of a moved run are adjusted (`relocate`).

    Raises:
        UserError: the file is missing, too large, not a regular file, not valid YAML, or not a mapping.
    """
    path = Path(path)
    try:
        if kind := kind_of(path):
            raise UserError(f"{path}: cannot be read as a YAML file (is {kind}); give a YAML file that describes the run")
        encoded = read_start(path, MAX_BYTES + 1)
        if len(encoded) > MAX_BYTES:
            raise UserError(f"{path}: is larger than {MAX_BYTES:,} bytes; allowed: a YAML file of at most that size")
        text = encoded.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{path}: there is no such file; give a YAML file that describes the run, or a table (on a hub: --data.train ID)"
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
        content = "nothing" if document is None else f"{shorten(document)} ({type(document).__name__})"
        raise UserError(
            f"{path}: found {content}; allowed: settings by name, such as `model: ...`, or a table ({', '.join(ENDINGS)})"
        )
    return relocate(document, path)


def _or_table(path: Path) -> str:
    """Return advice for invalid YAML in a file that may be a table; otherwise an empty string."""
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return ""
    return (
        f". The file was read as settings, since {path.suffix!r} is not the extension of a table. If it is a table, rename it; "
        f"allowed: {', '.join(ENDINGS)}, each also with .gz except .parquet (.tsv: tab-separated; .jsonl: a JSON object a line)"
    )


ADVICE = {
    "\\t": "indent with spaces: YAML allows no tabs there",
    "mapping values are not allowed": "put a value with a colon and a space in quotes, and indent nested settings",
    "that cannot start any token": "put a value that begins with this character in quotes",
    "alias": "put a value that begins with * in quotes",
    "is given twice": "keep one of the two",
    "unexpected end of stream": "close the quote",
    "expected ',' or": "close the bracket",
    "expected": "write NAME: VALUE, with all settings of one level in the same column",
}
"""Advice for invalid YAML. The keys are words in the message of the parser."""


def _describe_fault(error: Exception) -> str:
    """Return the line, column, fault and advice for invalid YAML, as text that follows the name of the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return f": is not valid YAML: {error}"
    problem = error.problem or error.context or "cannot be read"
    context = f" ({error.context})" if error.context and error.problem else ""
    advice = next((f"; {advice}" for words, advice in ADVICE.items() if words in problem + context), "")
    return f", line {mark.line + 1}, column {mark.column + 1}: is not valid YAML: {problem}{context}{advice}"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that also refuses duplicate keys, alias bombs, recursive aliases, deep nesting and lone surrogates.

    Only plain decimal numbers are converted: 010 (octal), 12:30 (base 60), 1_000, 0x1F, +1 and dates remain text. For numeric
    settings, the schema converts text such as 010, 1_000 or 1e-4.
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
        _Size().check(node)
        return self.construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError):  # such as `!!bool maybe`
            kind = node.tag.rpartition(":")[2]
            raise _refusal(node, f"found {shorten(node.value)}, which cannot be read as {kind}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`; merged keys may be overridden
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


class _Size:
    """Checks the number of values and the depth of a node after expanding all aliases."""

    def __init__(self) -> None:
        self.sizes: dict[int, tuple[int, int] | None] = {}

    def check(self, node: yaml.Node) -> tuple[int, int]:
        """Return the number of values and the depth of a node; raise a YAMLError if a limit is exceeded."""
        if id(node) in self.sizes:
            size = self.sizes[id(node)]
            if size is None:
                raise _refusal(node, "this value contains itself, by an alias")
            return size
        self.sizes[id(node)] = None
        values, depth = 1, 0
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        else:
            for child in node.value:
                for inner in child if isinstance(child, tuple) else (child,):
                    inner_values, inner_depth = self.check(inner)
                    values, depth = values + inner_values, max(depth, inner_depth + 1)
        if values > MAX_VALUES:
            raise _refusal(node, f"this expands to more than {MAX_VALUES:,} values, since aliases are repeated; allowed: fewer")
        if depth > MAX_DEPTH:
            raise _refusal(node, TOO_DEEP)
        self.sizes[id(node)] = values, depth
        return values, depth


def _check_scalar(node: yaml.ScalarNode) -> None:
    if surrogate := SURROGATE.search(node.value):
        raise _refusal(node, f"found {surrogate.group()!a}, half of a character; allowed: the character itself")
    if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
        raise _refusal(
            node, f"found a number of {len(node.value):,} characters; allowed: at most {MAX_NUMBER:,}, or quotes around it"
        )


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Parse `["--training.epochs", "5", "--task.text=review"]` into pairs of dotted name and value.

    Raises:
        UserError: a flag has no value, or is not a dotted name.
    """
    pairs: list[tuple[str, Any]] = []
    remaining = list(arguments)
    while remaining:
        flag = remaining.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise UserError(f"found {flag!r}; allowed: settings by dotted name, such as --training.epochs 5 or --data.test FILE")
        name, equals, value = flag[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                known = {known for known, _, _ in all_settings()}
                raise UserError(f"--{name}: needs a value, such as --{name} VALUE{'' if name in known else suggest(name)}")
            value = remaining.pop(0)
        if not all(name.split(".")):
            raise UserError(f"--{name}: a part of the name is empty; allowed: a dotted name, such as --training.epochs 5")
        section, *further_parts = name.split(".", 2)
        setting = [part.replace("-", "_") for part in (section, *further_parts[:1])]
        dotted = ".".join([*setting, *further_parts[1:]])  # the third part may be a label with dashes
        pairs.append((dotted, _parse_value(value)))
    return pairs


def _parse_value(text: str) -> Any:
    """Parse numbers, true, false, null, quoted text, and lists and mappings in brackets as YAML. Anything else remains text.

    yes, no, on and off remain text, since they may be labels; boolean settings accept them as well.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError):
        return text
    if isinstance(value, bool) or value is None:
        is_yaml = text.strip().lower() in ("true", "false", "null", "~")
    else:
        is_yaml = isinstance(value, (int, float)) or text.lstrip()[:1] in ("[", "{", '"', "'")
    return value if is_yaml else text


NAMED = ("task", "strategy")  # sections that may be a plain name


def merge(document: Document, overrides: Sequence[tuple[str, Any]]) -> tuple[Document, list[str]]:
    """Return a copy of the document with the overrides applied, and notes about dropped settings.

    Changing `task.name` or `strategy.name` drops the settings of the previous class. Names are therefore set first, regardless of
    the order of the flags.

    Raises:
        UserError: an override addresses a list position that does not exist, or a setting inside a plain value.
    """
    merged: Document = map_values(lambda value: value, document)  # shares other values, such as data frames
    notes: list[str] = []
    named = [(f"{name}.name" if name in NAMED and isinstance(value, str) else name, value) for name, value in overrides]
    for name, value in sorted(named, key=lambda pair: not pair[0].endswith((*NAMED, ".name"))):
        *sections, last = name.split(".")
        parent: Any = merged
        for depth in range(len(sections)):
            parent = _descend(parent, sections[: depth + 1], name)
        if isinstance(parent, list):
            parent[_index(parent, last, name)] = value
            continue
        if last == "name" and parent.get("name") not in (None, value):
            dropped = sorted(str(key) for key in parent if key != "name")
            notes.append(f"{name} changed from {parent['name']} to {value}; dropped its settings: {', '.join(dropped) or 'none'}")
            parent.clear()
        parent[last] = value
    return merged, notes


def _descend(parent: Any, path: list[str], name: str) -> Any:
    """Return the mapping or list at the last key of `path` in `parent`. A missing one is created, a plain name is expanded."""
    key: Any = _index(parent, path[-1], name) if isinstance(parent, list) else path[-1]
    child = parent[key] if isinstance(parent, list) else parent.get(key)
    if child is None:
        child = {}
    elif isinstance(parent, list) or key in NAMED:
        child = child if isinstance(child, list) else expand_name(child)
    if not isinstance(child, (dict, list)):
        raise UserError(f"--{name}: {'.'.join(path)} is {shorten(child)}, which has no settings")
    parent[key] = child
    return child


def _index(items: list[Any], text: str, name: str) -> int:
    positions = [str(position) for position in range(len(items))]
    if text not in positions:
        allowed = f"a position from 0 to {len(items) - 1}" if items else "no position: the list is empty"
        raise UserError(f"--{name}: found {text!r}; allowed: {allowed}")
    return int(text)

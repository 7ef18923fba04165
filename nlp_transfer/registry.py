"""Tasks and strategies by name. A name is a file in the folder; the class inside is the name in CamelCase.

Listing names imports nothing, so `nlp-transfer --help` can show them; the one file that is asked for is imported late.
"""

import importlib
from pathlib import Path
from typing import Any, Literal

from nlp_transfer.errors import UserError, did_you_mean

Kind = Literal["task", "strategy"]

FOLDERS: dict[Kind, str] = {"task": "tasks", "strategy": "strategies"}


def names(kind: Kind) -> list[str]:
    """The known names of a kind, sorted."""
    folder = Path(__file__).parent / FOLDERS[kind]
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load(kind: Kind, name: str) -> Any:
    """The class called `name`.

    Raises:
        UserError: the name is not known; the message lists the known ones and suggests the nearest.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f"{kind}.name: there is no {kind} {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}")
    module = importlib.import_module(f"nlp_transfer.{FOLDERS[kind]}.{name}")
    return getattr(module, name.title().replace("_", ""))

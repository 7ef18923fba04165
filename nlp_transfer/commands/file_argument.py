"""Find FILE among the arguments of a command, and tell settings from data."""

import json
import os
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from nlp_transfer.data.sources.file_reading import ENDINGS, OTHERS, format_of, read_start
from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.run.document import MAX_BYTES
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split a command line into FILE, which may be anywhere among the flags, and the flags with their values.

    Raises:
        UserError: there is more than one FILE.
    """
    flags, files = list[str](), list[str]()
    remaining = list(arguments)
    while remaining:
        first = remaining.pop(0)
        if first.startswith("-"):
            flags.append(first)
            if "=" not in first and remaining and not remaining[0].startswith("--"):
                flags.append(remaining.pop(0))
        else:
            files.append(first)
    if len(files) > 1:
        raise UserError(
            f"found {files[0]!r} and {files[1]!r}; allowed: settings by dotted name, such as --training.epochs 5, and one FILE"
        )
    return (files[0] if files else None), flags


def is_document(file: str) -> bool:
    """Return whether FILE contains settings rather than data.

    A .json file contains settings if it is an object that has a key `model` or `task`, or a key `data` whose value is an object.

    Raises:
        UserError: the format is not supported, such as .xlsx.
    """
    if is_wheel(file) or os.path.isdir(expand(file)):
        return False
    if Path(file).suffix.lower() == ".json":
        try:
            content = json.loads(read_start(expand(file), MAX_BYTES))
        except (OSError, ValueError, RecursionError):  # reported when it is read as a table
            return False
        return isinstance(content, dict) and (bool({"model", "task"} & content.keys()) or isinstance(content.get("data"), dict))
    if Path(file.removesuffix(".gz")).suffix.lower() in OTHERS - {".yaml", ".yml"} and os.path.exists(file):
        raise UserError(
            f"{file}: found the extension {Path(file).suffix!r}, which is not supported; allowed: settings in YAML (.yaml), or a "
            f"table ({', '.join(ENDINGS)}, each also with .gz except .parquet)"
        )
    return format_of(file) is None and not (has_magic(file) and not Path(file).exists())

"""Read untrusted files, with limits on their size and nesting. Without limits they could exhaust memory or crash a parser.

`LIBRARY_ERRORS` are the exceptions that libraries raise for damaged files.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from nlp_transfer.utils.errors import UserError, converted, prefixed, shorten

LIBRARY_ERRORS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError, ArithmeticError, RuntimeError,
    MemoryError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, StrictDataclassError,
)  # fmt: skip
MAX_CONFIG_BYTES = 256 * 2**20  # a configuration with a million labels takes a quarter of this
MAX_CONFIG_DEPTH = 50


def read_limited(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        UserError: the file is larger, or cannot be read; the caller adds the file's name to the message.
    """
    with converted("cannot be read"):
        if (size := path.stat().st_size) > limit:
            raise UserError(f"found {size:,} bytes; allowed: up to {limit:,}")
        return path.read_bytes()


def parse_limited(path: Path, limit: int, strict: bool = False) -> Any:
    """Parse a JSON file of at most `limit` bytes.

    Args:
        strict: refuse duplicate keys, NaN and infinity.

    Raises:
        UserError: the file is larger, cannot be read, is not valid JSON, or is nested too deeply; the caller adds the file's name
            to the message.
    """
    hooks: dict[str, Any] = {"object_pairs_hook": _unique_keys, "parse_constant": _refuse_constant} if strict else {}
    content = read_limited(path, limit)
    try:
        return json.loads(content.decode("utf-8"), **hooks)
    except RecursionError:
        raise UserError("is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains one object, such as a configuration.

    Raises:
        UserError: the file cannot be read, is not an object, or is too large or nested too deeply.
    """
    with prefixed(str(path)):
        document = parse_limited(path, MAX_CONFIG_BYTES)
    if not isinstance(document, dict):
        raise UserError(f"{path}: found {shorten(document)}; allowed: settings by name")
    if _depth(document) > MAX_CONFIG_DEPTH:
        raise UserError(f"{path}: is nested too deeply; allowed: {MAX_CONFIG_DEPTH} levels")
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return document


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"found {constant}, which is not a number in JSON")


def _depth(document: Any) -> int:
    """Return the number of nested levels, but at most `MAX_CONFIG_DEPTH` + 1. Deep nesting cannot cause a RecursionError here."""
    deepest, remaining = 0, [(document, 1)]
    while remaining:
        value, depth = remaining.pop()
        deepest = max(deepest, depth)
        if isinstance(value, (dict, list)) and depth <= MAX_CONFIG_DEPTH:
            remaining += [(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value)]
    return deepest

"""JSON of elsewhere, and what libraries raise over files that are broken or were made to break them."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from nlp_transfer.utils.errors import UserError, shorten
from nlp_transfer.utils.errors import first_line as first_line

FAULTS = (
    OSError, ValueError, TypeError, LookupError, AttributeError, ImportError, AssertionError, ArithmeticError, RuntimeError,
    MemoryError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, StrictDataclassError,
)  # fmt: skip
MAX_JSON = 256 * 2**20  # bytes of a configuration: that of a million labels takes a quarter
DEEPEST = 50  # levels of a configuration


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of settings by name.

    Raises:
        UserError: it cannot be read, is none, or is larger or nested deeper than any such file is.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path}: found {path.stat().st_size:,} bytes; allowed: up to {MAX_JSON:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"{path}: is nested too deeply; allowed: {DEEPEST} levels") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {shorten(found)}; allowed: settings by name")
    if _depth(found) > DEEPEST:
        raise UserError(f"{path}: is nested too deeply; allowed: {DEEPEST} levels")
    return found


def _depth(value: Any) -> int:
    deepest, rest = 0, [(value, 1)]
    while rest:
        inner, depth = rest.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, (dict, list)) and depth <= DEEPEST:
            rest += [(part, depth + 1) for part in (inner.values() if isinstance(inner, dict) else inner)]
    return deepest

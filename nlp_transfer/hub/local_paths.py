"""Recognize and remove local paths in the records of a model before a push."""

import re
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.wheels import is_wheel

LOCAL_PATH = re.compile(r"^(/|~/|[A-Za-z]:[\\/])")


def is_local(value: Any) -> bool:
    """Return whether a value is a local path, not a hub id."""
    if not isinstance(value, str) or not value or is_wheel(value):
        return False
    return bool(LOCAL_PATH.match(value)) or value.startswith(("./", "../")) or (value.count("/") > 0 and Path(value).is_dir())


def without_paths(document: Any) -> Any:
    """Remove fields that name the local folder of a model, and shorten other settings that are local paths to their last part."""
    if isinstance(document, list):
        return [without_paths(item) for item in document]
    if not isinstance(document, dict):
        return document
    cleaned = {
        key: value for key, value in document.items() if not (key in ("_name_or_path", "name_or_path") and is_local(value))
    }
    for key in ("decoder", "target_tokenizer"):  # needed to build the model, not to load it
        if is_local(cleaned.get(key)):
            cleaned[key] = Path(cleaned[key]).name
    return {key: without_paths(value) for key, value in cleaned.items()}


def shorten_paths(value: Any) -> Any:
    """Replace each absolute path with its last part. Labels are not changed, because they may look like paths."""
    if isinstance(value, dict):
        return {shorten_paths(key): item if key == "labels" else shorten_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shorten_paths(item) for item in value]
    if isinstance(value, str) and len(value) > 3 and LOCAL_PATH.match(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return value

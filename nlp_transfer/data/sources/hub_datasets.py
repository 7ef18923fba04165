"""Read datasets from the hub with `datasets`, which is imported only when needed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nlp_transfer.data.sources.rows import BLOCK, TRANSLATION, Rows, from_columns, names_of, unfold
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.utils.errors import UserError, did_you_mean, first_line

FORMATS = ("arrow", "csv", "json", "parquet", "text")  # formats that `datasets` reads without running code of the dataset


def read_hub_rows(source: str, match: "re.Match[str]", role: str, wanted: list[str]) -> Rows:
    """Read columns of a split of a dataset. Ids in `ClassLabel` columns become names, as in a file.

    Args:
        source: The id as the user wrote it.
        match: The match with the parts `id`, `revision`, `config` and `split` of the source.
        role: train, validation or test. Also the name of the split to read if the source does not name one.
        wanted: Names of the columns to read.

    Raises:
        UserError: The dataset, the configuration, the split or a column does not exist, or the hub cannot be reached.
    """
    from nlp_transfer.hub.client import asking

    split = match["split"] or role
    with asking(f"data.{role}: {source}"):
        try:
            revision = _commit(match["id"], match["revision"])
            data = _load(match["id"], match["config"], split, revision)
        except Exception as error:  # from the hub, the network, the parser or the dataset
            raise UserError(
                f"data.{role}: cannot load {source!r} (split {split!r}): {first_line(error)}; allowed: an existing file or "
                "folder, or a hub id as ORG/NAME, ORG/NAME:CONFIG or ORG/NAME:CONFIG#SPLIT"
            ) from error
    translations = {TRANSLATION: list(data[TRANSLATION])} if TRANSLATION in data.column_names else {}
    unfolded = unfold(translations, [name for name in wanted if name not in data.column_names])
    missing = [name for name in wanted if name not in data.column_names and name not in unfolded]
    if missing:
        known = list(dict.fromkeys([*data.column_names, *names_of(unfolded)]))
        raise UserError(
            f"data.{role}: {source} has no column {missing[0]!r}{did_you_mean(missing[0], known)}; found: {', '.join(known)}"
        )
    columns = {name: unfolded[name] if name in unfolded else column_of(data, name) for name in wanted}
    rows = from_columns(name_classes(columns, data.features), source)
    return replace(rows, revision=revision)


def _load(name: str, config: str | None, split: str, revision: str | None) -> Any:
    """Load a split from data files in the repository of the dataset.

    A dataset card may also name local files, other addresses, and formats that can run code. All of these are rejected.
    """
    import datasets
    from datasets import data_files

    resolve_pattern, repository = data_files.resolve_pattern, f"hf://datasets/{name}@"

    def resolve_in_repository(pattern: str, base_path: str = "", *rest: Any, **settings: Any) -> list[str]:
        address = pattern if pattern.startswith(repository) else f"{base_path}/{pattern}"
        is_outside = "://" in address.removeprefix("hf://") or not address.startswith(repository)
        if "::" in pattern or ".." in pattern.split("/") or is_outside:
            raise UserError(f"its card names {pattern!r}, which is outside its repository; allowed: files of the repository")
        return resolve_pattern(pattern, base_path, *rest, **settings)

    data_files.resolve_pattern = resolve_in_repository
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    finally:
        data_files.resolve_pattern = resolve_pattern
    modules = (kind.__module__ for kind in type(builder).__mro__)
    file_format = next(module.rpartition(".")[2] for module in modules if "packaged_modules" in module)
    if file_format not in FORMATS:
        raise UserError(f"its files are of the format {file_format}; allowed: {', '.join(FORMATS)}")
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def column_of(data: Any, name: str, plain: Callable[[Any], Any] = lambda cell: cell) -> Sequence[Any]:
    """Read a column of a `datasets.Dataset` in blocks, without keeping all of its texts in memory.

    Args:
        data: The dataset.
        name: The column.
        plain: Converts a cell to a plain Python value.
    """
    column = GrowingColumn()
    selected = data.select_columns([name])
    for start in range(0, len(data), BLOCK):
        values = selected[start : start + BLOCK][name]
        for to_list in ("to_pylist", "tolist"):
            values = getattr(values, to_list)() if hasattr(values, to_list) else values
        column.extend(map(plain, values))
    return column.done()


def name_classes(columns: Mapping[str, Sequence[Any]], features: Any) -> dict[str, Sequence[Any]]:
    """Replace ids with names in columns of `ClassLabel` or of lists of `ClassLabel`. The id -1 (no label) becomes None."""
    import datasets

    named = dict(columns)
    for name, values in columns.items():
        feature = features.get(name)  # None for a language of a `translation` column
        if isinstance(feature, datasets.ClassLabel):
            named[name] = [feature.int2str(value) if value is not None and value >= 0 else None for value in values]
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.ClassLabel):
            named[name] = [None if ids is None else [inner.int2str(i) for i in ids] for ids in values]
    return named


def _commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a revision, or the revision if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except UserError:
        raise
    except Exception:  # offline, or no such dataset: loading uses the cache or reports the problem
        return revision

"""Data sets on the hub, through `datasets`. Only named here, so that local runs never import it."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlp_transfer.data.sources.rows import BLOCK, TRANSLATION, Rows, from_columns, names_of, unfold
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.utils.errors import UserError, did_you_mean

FORMATS = ("arrow", "csv", "json", "parquet", "text")  # of datasets, whose files hold rows and nothing that runs


def read_hub_rows(source: str, match: "re.Match[str]", role: str, wanted: list[str]) -> Rows:
    """The `wanted` columns of a split; the split is the role's (train, validation, test) unless the source names one.

    Class ids of a `ClassLabel` column become their names, so that labels read the same wherever they come from.

    Raises:
        UserError: the data set, the configuration, the split or a column is not there, or the hub cannot be reached.
    """
    from nlp_transfer.hub.client import asking

    split = match["split"] or role
    with asking(f"data.{role}: {source}"):
        try:
            revision = _commit(match["id"], match["revision"])
            data = _load(match["id"], match["config"], split, revision)
        except Exception as error:  # the hub, the network, the parser and the data set itself each have their own
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"data.{role}: cannot load {source!r} (split {split!r}): {first}; allowed: a file or folder that exists, or a "
                "hub id as ORG/NAME, ORG/NAME:CONFIG or ORG/NAME:CONFIG#SPLIT"
            ) from error
    cells = {TRANSLATION: list(data[TRANSLATION])} if TRANSLATION in data.column_names else {}
    inside = unfold(cells, [name for name in wanted if name not in data.column_names])
    missing = [name for name in wanted if name not in data.column_names and name not in inside]
    if missing:
        known = list(dict.fromkeys([*data.column_names, *names_of(inside)]))
        raise UserError(
            f"data.{role}: {source} has no column {missing[0]!r}{did_you_mean(missing[0], known)}; found: {', '.join(known)}"
        )
    columns = {name: inside[name] if name in inside else column_of(data, name) for name in wanted}
    columns = name_classes(columns, data.features)
    rows = from_columns(columns, source)
    return Rows(rows.columns, rows.files, rows.file_of, rows.position, {}, revision)


def _load(name: str, config: str | None, split: str, revision: str | None) -> Any:
    """A split, from the files of its own repository alone, in a format for tables or texts.

    The card of a data set may name files of this machine or other addresses, and formats whose files can run code.
    """
    import datasets
    from datasets import data_files

    resolve, own = data_files.resolve_pattern, f"hf://datasets/{name}@"

    def resolve_own(pattern: str, base_path: str = "", *rest: Any, **settings: Any) -> list[str]:
        inside = pattern if pattern.startswith(own) else f"{base_path}/{pattern}"
        if "::" in pattern or ".." in pattern.split("/") or "://" in inside.removeprefix("hf://") or not inside.startswith(own):
            raise UserError(f"its card names {pattern!r}, which is no file of its own; allowed: files of its repository")
        return resolve(pattern, base_path, *rest, **settings)

    data_files.resolve_pattern = resolve_own
    try:
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    finally:
        data_files.resolve_pattern = resolve
    base = next(kind.__module__.rpartition(".")[2] for kind in type(builder).__mro__ if "packaged_modules" in kind.__module__)
    if base not in FORMATS:
        raise UserError(f"its files are of the format {base}; allowed: {', '.join(FORMATS)}")
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def column_of(data: Any, name: str, plain: Callable[[Any], Any] = lambda cell: cell) -> Sequence[Any]:
    """The cells of a column of a `datasets.Dataset`, which lies on disk, without ever having all of its texts in memory."""
    column = GrowingColumn()
    alone = data.select_columns([name])
    for start in range(0, len(data), BLOCK):
        values = alone[start : start + BLOCK][name]
        for to_list in ("to_pylist", "tolist"):
            values = getattr(values, to_list)() if hasattr(values, to_list) else values
        column.extend(map(plain, values))
    return column.done()


def name_classes(columns: Mapping[str, Sequence[Any]], features: Any) -> dict[str, Sequence[Any]]:
    """Ids of `ClassLabel` columns (alone or in a list) as names; -1, the hub's mark for no label, as None."""
    import datasets

    named = dict(columns)
    for name, values in columns.items():
        feature = features.get(name)  # a side of a `translation` column has no feature of its own
        if isinstance(feature, datasets.ClassLabel):
            named[name] = [feature.int2str(value) if value is not None and value >= 0 else None for value in values]
        inner = getattr(feature, "feature", None)
        if isinstance(inner, datasets.ClassLabel):
            named[name] = [None if ids is None else [inner.int2str(i) for i in ids] for ids in values]
    return named


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision is at; the data is then read at exactly that one."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except UserError:
        raise
    except Exception:  # offline, or no such data set: loading finds it in the cache, or says what is wrong
        return revision

"""Read two line-aligned text files: line n of the target file belongs to line n of the source file."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlp_transfer.data.sources.file_reading import check_unchanged, new_skipped, state_of
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.sources.table_reader import read_lines
from nlp_transfer.data.sources.text_columns import GrowingColumn
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError

SIDES = ("source", "target")


def check_no_aligned(data: DataConfig, columns: list[str], problems: Problems) -> None:
    """Add a problem for each line-aligned source; called for tasks without a text as target."""
    for role in ("train", "validation", "test"):
        if isinstance(getattr(data, role), Mapping):
            problems.add(
                f"data.{role}: found two line-aligned files, which only tasks that generate text can use; allowed: a table with "
                f"the columns {', '.join(columns)}"
            )


def read_aligned(files: Mapping[str, str], role: str, data: DataConfig, wanted: list[str]) -> Rows:
    """Read `files["source"]` and `files["target"]` as the two `wanted` columns, in that order. Any file extension is allowed.

    Raises:
        UserError: A file is missing or broken, the numbers of lines differ, or the task does not have two columns.
    """
    if len(wanted) != len(SIDES) and data.group in wanted:
        raise UserError(
            f"data.group: found {data.group!r}, but line-aligned files (data.{role}) have no columns except source and target; "
            "allowed: null, or a table with such a column"
        )
    if len(wanted) != len(SIDES):
        raise UserError(
            f"data.{role}: found two line-aligned files, which have a source and a target, but this task needs the columns "
            f"{', '.join(wanted)}; allowed: a table with these columns"
        )
    problems = Problems(f"data.{role}")
    paths = {side: expand(files[side]) for side in SIDES}
    if len({str(path.absolute()) for path in paths.values()}) == 1:
        raise UserError(f"data.{role}: {paths['source']} is given as both source and target; allowed: one file for each")
    columns: dict[str, Sequence[Any]] = {}
    hashes: dict[str, str] = {}
    skipped = new_skipped(data)
    for side, name in zip(SIDES, wanted, strict=True):
        path = paths[side]
        try:
            before = state_of(path)
            column = GrowingColumn()
            for lines in read_lines(path, data, skipped):
                column.extend(lines)
            columns[name] = column.done()
            hashes[str(path.resolve())] = sha256_of(path)
            check_unchanged(path, before)
        except UserError as error:
            problems.absorb(error)
        except OSError as error:  # removed after it was opened
            problems.add(f"{path}: cannot be read ({error.strerror or error})")
    if len(columns) == len(SIDES) and len(set(map(len, columns.values()))) > 1:
        counts = ", ".join(f"{paths[side]} has {len(columns[name])} lines" for side, name in zip(SIDES, wanted, strict=True))
        problems.add(f"{counts}; allowed: the same number of lines, where line n of one belongs to line n of the other")
    problems.raise_if_any()
    length = len(columns[wanted[0]])
    name = " + ".join(str(path) for path in paths.values())
    rows = Rows(columns, [name], np.zeros(length, np.int32), np.arange(1, length + 1), hashes)
    return rows.without_positions(skipped)

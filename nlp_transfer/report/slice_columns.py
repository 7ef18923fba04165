"""Read the columns by which a report divides the rows into slices."""

from collections.abc import Iterable, Sequence

import numpy as np

from nlp_transfer.data.sources import read_rows
from nlp_transfer.report.run_records import RunRecords, input_text
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import UserError, shorten


def slice_columns(run: RunRecords, names: Iterable[str]) -> dict[str, Sequence[object]]:
    """Return the values of columns for each row of the predictions of a run.

    Columns that are not in the file of predictions are read from the data of the run.

    Raises:
        UserError: The run has no predictions that can be analysed, or there is no such column.
    """
    names = list(dict.fromkeys(names))
    predictions = run.predictions
    if not names:
        return {}
    if predictions is None:
        raise UserError(
            f"--slice: {run.folder} has no predictions that can be analysed; allowed: a run with predictions/*.parquet"
        )
    missing = [name for name in names if name not in predictions.columns]
    found = _from_data(run, predictions.split, missing) if missing else {}
    return {name: predictions.columns[name] if name not in missing else found[name] for name in names}


def _from_data(run: RunRecords, split: str, names: list[str]) -> dict[str, Sequence[object]]:
    """Read columns from the data of the run, and match its rows to the predictions by file and row."""
    assert run.predictions is not None
    settings = run.settings.get("data") or {}
    role = split if settings.get(split) else "train"  # a split without a source comes from the training data
    known = ", ".join(name for name in run.predictions.columns if not name.startswith("probability:"))
    if not isinstance(settings.get(role), (str, dict)):
        raise UserError(f"--slice: found {shorten(names)}; data.{role} of {run.folder} is not a file; allowed: {known}")
    try:
        rows = read_rows(settings[role], role, DataConfig(**settings), [*run.task.inputs, *names], run.task.traits.readers)
    except (UserError, ValueError) as error:  # ValueError: settings of another version
        raise UserError(
            f"--slice: found {shorten(names)}, which must be read from data.{role}: {error}; allowed: {known}"
        ) from None
    columns = run.predictions.columns
    files, positions = (columns.get(f"source_{name}", columns.get(name)) for name in ("file", "row"))
    if files is None or positions is None:
        raise UserError(f"--slice: the predictions of {run.folder} do not say where their rows came from; allowed: {known}")
    place = {
        (rows.files[file], int(position)): i for i, (file, position) in enumerate(zip(rows.file_of, rows.position, strict=True))
    }
    found = [place.get((file, position or 0)) for file, position in zip(files, positions, strict=True)]
    same = [
        i is not None and [input_text(rows.columns[name][i]) for name in run.task.inputs] == run.inputs(row)
        for row, i in enumerate(found)
    ]
    if not all(same):
        row = int(np.flatnonzero(~np.array(same))[0])
        raise UserError(
            f"--slice: {files[row]}, row {positions[row]}: is not the row that the run predicted; allowed: the same data, "
            f"or one of {known}"
        )
    return {name: [rows.columns[name][i] for i in found] for name in names}  # type: ignore[index]

"""Read Python objects: DataFrames, Datasets, Arrow tables, dicts, lists, Series and single texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nlp_transfer.data.sources.rows import TRANSLATION, Rows, check_columns, from_columns, names_of, unfold
from nlp_transfer.utils.errors import Problems, UserError, with_type

INPUTS = (
    "a text; a list, Series or array of texts (of tuples, if the model takes several texts); a DataFrame; a Dataset; a dict of "
    "columns; a list of dicts"
)


def is_table(source: Any) -> bool:
    """Return whether an object has named columns: a DataFrame, a Dataset or an Arrow table."""
    return hasattr(source, "column_names") or hasattr(source, "columns")


def read_table_object(source: Any, name: str, wanted: list[str]) -> Rows:
    """Read columns of a DataFrame, a Dataset or an Arrow table.

    Args:
        source: The table.
        name: Name for messages.
        wanted: Names of the columns to read.

    Raises:
        UserError: A column is missing, or the object is a stream without a length.
    """
    if not hasattr(source, "__len__"):
        raise UserError(f"{name}: found {type(source).__name__}, a stream without a length; allowed: a Dataset")
    names = [str(column) for column in (source.column_names if hasattr(source, "column_names") else source.columns)]
    cells = {TRANSLATION: list(_cells(source, TRANSLATION))} if names.count(TRANSLATION) == 1 else {}
    inside = unfold(cells, [column for column in wanted if column not in names])
    check_columns([*names, *(column for column in names_of(inside) if column not in names)], wanted, name)
    columns = {column: inside[column] if column in inside else _cells(source, column) for column in wanted}
    if hasattr(source, "features"):
        from nlp_transfer.data.sources.hub_datasets import name_classes

        columns = name_classes(columns, source.features)
    return from_columns(columns, name)


def read_inputs(inputs: Any, wanted: list[str], word_lists: bool = False) -> tuple[Rows, bool]:
    """Read the inputs of a prediction: columns of a table, or texts without column names.

    Args:
        inputs: See `INPUTS`.
        wanted: Names of the columns.
        word_lists: Whether a row may be a list of words.

    Returns:
        The rows, and whether `inputs` was a single row.

    Raises:
        UserError: The inputs are not texts, or a column is missing.
    """
    if isinstance(inputs, str):
        return _from_records([inputs], wanted), True
    if isinstance(inputs, Mapping):
        return _from_mapping(inputs, wanted)
    if is_table(inputs):
        return read_table_object(inputs, "texts", wanted), False
    if (row := _named(inputs)) is not None and set(wanted) <= row.keys():  # a row of a DataFrame
        return _from_records([row], wanted), True
    if isinstance(inputs, (bytes, bytearray)) or not isinstance(inputs, Iterable) or getattr(inputs, "ndim", 1) == 0:
        raise UserError(f"texts: found {with_type(inputs)}; allowed: {INPUTS}")
    records = [plain_cell(item) if _named(item) is None else _named(item) for item in inputs]
    if word_lists:
        records = [[item] if isinstance(item, (tuple, list)) else item for item in records]
    return _from_records(records, wanted), False


def _named(item: Any) -> dict[str, Any] | None:
    """Return a named tuple, or a Series with text labels, as a dict of cells; None for other objects."""
    if isinstance(item, tuple) and hasattr(item, "_asdict"):
        return {str(name): cell for name, cell in item._asdict().items()}
    index = getattr(item, "index", None)
    if index is None or callable(index) or not all(isinstance(name, str) for name in index):
        return None
    return dict(zip(index, item, strict=True))


def _from_mapping(inputs: Mapping[Any, Any], wanted: list[str]) -> tuple[Rows, bool]:
    """Read a dict of columns, or a single row as a dict of cells."""
    if splits := [str(name) for name, value in inputs.items() if is_table(value)]:
        raise UserError(f"texts: found the tables {', '.join(splits)}; allowed: one of them")
    by_name = {str(name): value for name, value in inputs.items()}
    check_columns(list(by_name), wanted, "texts")
    cells = {name: by_name[name] for name in wanted}
    if single := all(isinstance(cell, str) for cell in cells.values()):
        cells = {name: [cell] for name, cell in cells.items()}
    problems = Problems()
    for name, cell in cells.items():
        if isinstance(cell, (str, bytes, Mapping, set)) or not isinstance(cell, Iterable):
            problems.add(
                f"texts, column {name!r}: found {with_type(cell)}; allowed: a list of texts with as many rows as the others"
            )
    problems.raise_if_any()
    columns = {name: [plain_cell(value) for value in cell] for name, cell in cells.items()}
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name}: {len(column)}" for name, column in columns.items())
        raise UserError(f"texts: found columns of different lengths ({lengths}); allowed: equal lengths")
    return from_columns(columns, "texts"), single


def _from_records(records: Sequence[Any], wanted: list[str]) -> Rows:
    """Read texts, tuples of texts or dicts, one per row. The task checks the types of cells."""
    problems = Problems()
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    for number, record in enumerate(records, start=1):
        if isinstance(record, Mapping):
            for name in wanted:
                if name not in record:
                    problems.add(f"texts, row {number}: has no {name!r}; found: {', '.join(map(str, record)) or 'nothing'}")
                columns[name].append(plain_cell(record.get(name)))
            continue
        cells = record if isinstance(record, (tuple, list)) else [record]
        if len(cells) != len(wanted):
            problems.add(f"texts, row {number}: found {with_type(record, 60)}; allowed: {_row_form(wanted)}")
            cells = [None] * len(wanted)
        for name, cell in zip(wanted, cells, strict=True):
            columns[name].append(plain_cell(cell))
    problems.raise_if_any()
    return from_columns(columns, "texts")


def _row_form(wanted: list[str]) -> str:
    if len(wanted) == 1:
        return f"a text, or a dict with {wanted[0]!r}"
    return f"a tuple of {len(wanted)} texts ({', '.join(wanted)}), or a dict with these names"


def _cells(source: Any, name: str) -> Sequence[Any]:
    if hasattr(source, "select_columns"):
        from nlp_transfer.data.sources.hub_datasets import column_of

        return column_of(source, name, plain_cell)
    if not hasattr(source, "column_names"):
        name = next(column for column in source.columns if str(column) == name)  # a DataFrame's columns may be numbers
    values = source[name]
    if str(getattr(values, "dtype", "")) in ("float32", "float16"):  # shortest form, as in a CSV file: 0.1, not 0.10000000149
        return [plain_cell(float(str(value))) for value in values.to_numpy()]
    for to_list in ("to_pylist", "tolist", "to_list"):
        if hasattr(values, to_list):
            values = getattr(values, to_list)()
            break
    return [plain_cell(value) for value in values]


def plain_cell(value: Any) -> Any:
    """Return a cell as a plain Python value. Missing values (NaN, and NA and NaT of pandas) become None."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if hasattr(value, "as_py"):  # an Arrow scalar
        return value.as_py()
    return value.tolist() if hasattr(value, "tolist") else value

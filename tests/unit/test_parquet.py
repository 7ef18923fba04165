"""Parquet in and out: what passes through stays as it is, what nobody asked for is not read, and types fit all rows."""

import decimal
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_transfer.data.sources import parquet_reader, read_rows
from nlp_transfer.data.sources.table_reader import Batch, read_table, scan_table
from nlp_transfer.inference import file_predictor, parquet_writer
from nlp_transfer.inference.command_inputs import FileOptions
from nlp_transfer.inference.files import predict_file
from nlp_transfer.inference.output_journal import ChunkPredictions
from nlp_transfer.inference.writers import Writer
from nlp_transfer.settings.schema import DataConfig
from tests.builders import refused
from tests.faults.test_hostile_files import not_utf8

ROWS = 100
CHUNK_ROWS = 30


def half(values: Any) -> list[Any]:
    """`values` in every second row, nothing in the others."""
    return [values, None] * (ROWS // 2)


COLUMNS: list[tuple[pa.Field, pa.Array]] = [
    (pa.field("text", pa.string(), nullable=False, metadata={"note": "read"}), pa.array([f"text {i}" for i in range(ROWS)])),
    (pa.field("id", pa.int8()), pa.array([i - 50 for i in range(ROWS)], pa.int8())),
    (pa.field("big", pa.uint64()), pa.array([2**64 - 1 - i for i in range(ROWS)], pa.uint64())),
    (pa.field("time", pa.timestamp("ns")), pa.array([1_714_560_000_000_000_001] * ROWS, pa.timestamp("ns"))),
    (pa.field("zone", pa.timestamp("us", tz="No/Where")), pa.array([1] * ROWS, pa.timestamp("us", tz="No/Where"))),
    (pa.field("date", pa.date32()), pa.array([10**7] * ROWS, pa.date32())),
    (pa.field("price", pa.decimal128(10, 2)), pa.array(half(decimal.Decimal("12.30")), pa.decimal128(10, 2))),
    (
        pa.field("class", pa.dictionary(pa.int8(), pa.string(), ordered=True)),
        pa.DictionaryArray.from_arrays(pa.array([i % 2 for i in range(ROWS)], pa.int8()), ["low", "high", "none"], ordered=True),
    ),
    (pa.field("long", pa.large_string()), pa.array(half("x"), pa.large_string())),
    (pa.field("list", pa.list_(pa.field("element", pa.int16()))), pa.array(half([1, None]), pa.list_(pa.int16()))),
    (pa.field("struct", pa.struct({"a": pa.int8()})), pa.array(half({"a": 1}), pa.struct({"a": pa.int8()}))),
    (pa.field("map", pa.map_(pa.string(), pa.int8())), pa.array(half([("k", 1)]), pa.map_(pa.string(), pa.int8()))),
    (pa.field("nothing", pa.int64()), pa.nulls(ROWS, pa.int64())),
    (pa.field("no type", pa.null()), pa.nulls(ROWS)),
    (pa.field("late", pa.float32()), pa.array([None] * (ROWS - 1) + [1.1], pa.float32())),
    (pa.field("bytes", pa.binary()), pa.array(half(b"\xff\0"))),
    (pa.field("a.b", pa.bool_()), pa.array([True] * ROWS)),
    (pa.field("broken", pa.string()), pa.concat_arrays([not_utf8()] * ROWS)),
    (pa.field("__len__", pa.string()), pa.array(["x"] * ROWS)),
]
TABLE = pa.table([array for _, array in COLUMNS], schema=pa.schema([field for field, _ in COLUMNS], metadata={"made by": "us"}))

Predict = Callable[[str], Path]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Predict:
    """Runs `predict` with a model that reads the column `text` and answers with nothing, and from the second window on with
    lists; gives back the output."""

    class Model:
        chunk_rows = CHUNK_ROWS
        columns = ("text",)
        identity: ClassVar[dict[str, str]] = {}
        readers: ClassVar[dict[str, Any]] = {}

        def __init__(self, **arguments: Any) -> None: ...

        def __call__(self, batch: Batch) -> ChunkPredictions:
            assert list(batch.columns) == ["text"] or not batch.names, "only what the model reads is converted to Python"
            cell = None if batch.first == 1 else [batch.columns["text"][0]]
            return ChunkPredictions({"prediction": [cell] * len(batch)})

    def run(name: str, rows: pa.Table = TABLE) -> Path:
        pq.write_table(rows, tmp_path / "in.parquet", row_group_size=33)
        predict_file({"model": "model", "settings": {}}, FileOptions(tmp_path / "in.parquet", tmp_path / name))
        return tmp_path / name

    monkeypatch.setattr(parquet_reader, "AT_ONCE", 10)
    monkeypatch.setattr(file_predictor, "FilePredictor", Model)
    return run


def test_columns_pass_through_parquet_bit_for_bit(predict: Predict, tmp_path: Path) -> None:
    output = pq.read_table(predict("out.parquet"))
    given = pq.read_table(tmp_path / "in.parquet")
    rest = output.select(given.column_names)
    assert rest.schema.equals(given.schema, check_metadata=True)
    for name in given.column_names:
        assert rest.column(name).equals(given.column(name)), name
    assert output.schema.field("prediction").type == pa.list_(pa.field("element", pa.string()))
    assert output.column("prediction").to_pylist()[CHUNK_ROWS - 1 : CHUNK_ROWS + 1] == [None, ["text 30"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_values_of_large_dictionaries_pass_through(predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow repeats the dictionary of all rows in each batch; neither memory nor output may hold it as often."""
    monkeypatch.setattr(parquet_reader, "LARGE_DICTIONARY", 10)
    values = pa.array([f"value {i // 2}" for i in range(ROWS)])
    output = pq.read_table(predict("out.parquet", pa.table({"text": values, "d": values.dictionary_encode()})))
    assert output.schema.field("d").type == pa.dictionary(pa.int32(), pa.string())
    assert output.column("d").to_pylist() == values.to_pylist()
    assert max(len(chunk.dictionary) for chunk in output.column("d").chunks) < ROWS // 2


def test_lists_of_categories_that_differ_between_row_groups(predict: Predict) -> None:
    words = pa.array([f"word {i // 40}" for i in range(ROWS)])
    lists = [pa.ListArray.from_arrays(list(range(len(part) + 1)), part.dictionary_encode()) for part in (words[:33], words[33:])]
    table = pa.table({"text": words, "l": pa.chunked_array(lists)})
    assert pq.read_table(predict("out.parquet", table)).column("l").to_pylist() == [[word] for word in words.to_pylist()]


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_text_formats_lose_nothing_of_parquet_columns(ending: str, predict: Predict) -> None:
    table = TABLE.drop_columns(["zone", "broken"])
    output = predict(f"out{ending}", table)
    if ending == ".jsonl":
        row = json.loads(output.read_text().split("\n")[0])
    else:
        [batch] = read_table(output, DataConfig())
        row = {name: cells[0] for name, cells in batch.columns.items()}
    assert list(row) == [*table.column_names, "prediction"]
    assert row["time"] == "2024-05-01 10:40:00.000000001"
    assert row["price"] == "12.30"
    assert row["class"] == "low"
    assert row["bytes"] == "/wA=", "base64"
    assert str(row["big"]) == "18446744073709551615"
    assert (row["list"], row["map"], row["struct"]) in [
        ([1, None], [["k", 1]], {"a": 1}),
        ("[1, null]", '[["k", 1]]', '{"a": 1}'),
    ]


def test_time_zone_that_text_cannot_show_is_named(predict: Predict) -> None:
    with refused("'zone' (timestamp[us, tz=No/Where])", "No/Where", ".parquet"):
        predict("out.csv")


def test_columns_that_nobody_asked_for_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a", "b"], "label": ["x", "y"], "rest": ["r", "s"]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(2)
    content = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
    assert read_rows(str(path), "train", DataConfig(), ["text", "label"]).columns == {"text": ["a", "b"], "label": ["x", "y"]}
    [batch] = read_table(path, DataConfig(), wanted=[])
    assert (len(batch), batch.columns, batch.has_column("rest")) == (2, {}, True), "a prediction may not be called `rest`"
    with refused("no column 'txt'", "found: text, label, rest"):
        read_rows(str(path), "train", DataConfig(), ["txt"])
    with refused("cannot be read as Parquet"):
        read_rows(str(path), "train", DataConfig(), ["rest"])


def test_side_inside_a_translation_column_is_found_beside_others(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"translation": [{"en": "a", "de": "b"}], "id": [1]}), path)
    assert read_rows(str(path), "train", DataConfig(), ["en", "id"]).columns == {"en": ["a"], "id": [1]}


def write(path: Path, *windows: dict[str, list[Any]]) -> pa.Table:
    with Writer(path, ".parquet") as writer:
        for columns in windows:
            writer.write(columns)
    return pq.read_table(path)


def test_types_that_show_late_hold_for_all_rows(tmp_path: Path) -> None:
    first = {"a": [None, None], "n": [1, 2], "s": [{"x": 1}, None], "l": [[], [None]], "t": ["p", "q"]}
    second = {"a": ["x", None], "n": [1.5, None], "s": [{"y": [True]}, {}], "l": [["z"], None], "t": ["r", "s"], "new": [1, 2]}
    third = {"new": [3], "t": ["u"]}
    table = write(tmp_path / "a.parquet", first, second, third)
    assert table.to_pydict() == {
        "a": [None, None, "x", None, None],
        "n": [1.0, 2.0, 1.5, None, None],
        "s": [{"x": 1, "y": None}, None, {"x": None, "y": [True]}, {"x": None, "y": None}, None],
        "l": [[], [None], ["z"], None, None],
        "t": ["p", "q", "r", "s", "u"],
        "new": [None, None, 1, 2, 3],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_many_late_columns_need_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_writer, "MOST_PARTS", 3)
    table = write(tmp_path / "a.parquet", *({f"c{i}": [i], "t": [str(i)]} for i in range(10)))
    assert table.to_pylist() == [
        {name: i if name == f"c{i}" else str(i) if name == "t" else None for name in table.column_names} for i in range(10)
    ]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([1], ["x"], ["int64", "string"]), ([True], [1], ["bool", "int64"]), ([[1]], [1], ["list<item: int64>", "int64"]),
        ([2**60 + 1], [0.5], ["int64", "double"]), (["x", 1], [], ["int and str"]), ([1.5, True], [], ["bool and float"]),
    ],
    ids=["text", "bool", "list", "number that a double cannot hold", "mixed", "bool among numbers"],
)  # fmt: skip
def test_incompatible_types_are_named_with_their_column(
    first: list[Any], second: list[Any], says: list[str], tmp_path: Path
) -> None:
    with refused("column 'c'", "allowed: .jsonl", *says):
        write(tmp_path / "a.parquet", {"text": ["a"] * len(first), "c": first}, {"text": ["b"] * len(second), "c": second})


def test_nulls_in_the_first_chunk_of_jsonl_are_allowed(predict: Predict, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": str(i), "n": None if i < ROWS - 1 else 7}) + "\n" for i in range(ROWS)))
    predict_file({"model": "model", "settings": {}}, FileOptions(source, tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == [None] * (ROWS - 1) + [7]


@pytest.mark.parametrize("cells", [[[True], [2.5]], [{"a": True}, {"a": 2.5}], [[{"a": False}], [{"a": 0.5}]], [True, 2.5]])
def test_truth_inside_lists_and_objects_does_not_become_a_number(cells: list[Any], tmp_path: Path) -> None:
    with refused("'z'", "booleans among numbers"):
        write(tmp_path / "o.parquet", {"z": cells})


@pytest.mark.parametrize("cell", [{}, [{}]])
def test_an_object_without_fields_is_refused_with_a_way_out(cell: Any, tmp_path: Path) -> None:
    with refused("allowed: .jsonl"):
        write(tmp_path / "o.parquet", {"z": [cell]})


def test_rows_and_columns_are_known_before_predicting(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 3000}), tmp_path / "t.parquet")
    assert scan_table(tmp_path / "t.parquet", DataConfig()) == (3000, ["text"])
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' * 3000 + '{"late": 1}\n[]\n')
    assert scan_table(tmp_path / "t.jsonl", DataConfig()) == (3002, ["text", "late"])
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with refused("bad.parquet: cannot be read as Parquet"):
        scan_table(tmp_path / "bad.parquet", DataConfig())

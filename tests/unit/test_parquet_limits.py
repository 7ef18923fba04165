"""Small Parquet files that stand for gigabytes are refused within the limit of memory; what is not asked for is not decoded."""

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_transfer.data.sources import parquet_reader
from nlp_transfer.data.sources.memory_limit import limited_memory
from nlp_transfer.data.sources.table_reader import read_table, scan_table
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.errors import UserError
from tests.builders import refused

pytestmark = pytest.mark.process

MIB = 2**20
ROWS = 1000
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixteenth of the limits, so that files are small and quick to write."""
    monkeypatch.setattr(parquet_reader, "MEMORY", 64 * MIB)
    monkeypatch.setattr(parquet_reader, "ROW_BYTES", 4 * MIB)


def write(path: Path, other: Any, **how: Any) -> None:
    table = pa.table({"text": ["a"] * len(other), "other": other})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=2**30, **how)


def repeated(value: str, rows: int = ROWS) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


def lists(elements: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array([0, len(elements)], pa.int32()), elements)


HOSTILE: dict[str, Make] = {
    "a large value in a dictionary": lambda path: write(path, repeated("x" * 8 * MIB), store_schema=False),
    "the same as a column of categories": lambda path: write(path, repeated("x" * 8 * MIB)),
    "many values from a small dictionary": lambda path: write(path, repeated("x" * 2**17, 10_000), store_schema=False),
    "prefixes of the value before": lambda path: write(
        path, ["x" * 4 * MIB] * 100, use_dictionary=False, column_encoding={"text": "PLAIN", "other": "DELTA_BYTE_ARRAY"}
    ),
    "a page of zeros": lambda path: write(path, ["z" * 100 * MIB], use_dictionary=False),
    "a list of nulls": lambda path: write(path, lists(pa.nulls(20_000_000, pa.int8()))),
    "a list of what is null by its type": lambda path: write(path, lists(pa.nulls(5_000_000))),
    "a list of truth values": lambda path: write(path, lists(pa.array([True] * 5_000_000))),
    "a dictionary in a list": lambda path: write(path, lists(repeated("x" * MIB))),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_column_that_unfolds_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    HOSTILE[kind](path)
    rows, names = scan_table(path, DataConfig())
    assert path.stat().st_size < MIB
    assert names == ["text", "other"]
    with pytest.raises(UserError) as refused:
        deque(read_table(path, DataConfig(), 10_000, ["text"], keep_table=True), maxlen=0)
    message = str(refused.value)
    assert str(path) in message
    assert "'other" in message
    assert "row" in message
    asked = [text for batch in read_table(path, DataConfig(), 10_000, ["text"]) for text in batch.columns["text"]]
    assert asked == ["a"] * rows


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_column_is_named_if_memory_ends_before_it_is_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: Any) -> Any:
        raise MemoryError

    HOSTILE[kind](tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_reader, "_compact", fail)
    with refused("row group 1, largest column 'other"):
        list(read_table(tmp_path / "a.parquet", DataConfig(), 10_000))


def test_rows_of_just_the_limit_are_read_piece_by_piece(tmp_path: Path) -> None:
    text = ["x" * (parquet_reader.ROW_BYTES - 100), "y" * (parquet_reader.ROW_BYTES - 100), "z"]
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet", compression="none")
    batches = list(read_table(tmp_path / "a.parquet", DataConfig(), 10_000, ["text"]))
    assert [value for batch in batches for value in batch.columns["text"]] == text
    assert [batch.first for batch in batches] == [1, 3]


def test_a_row_over_the_limit_is_named(tmp_path: Path) -> None:
    columns = {"text": ["a", "b"], "large": ["", "x" * 3 * MIB], "other": ["", "y" * 2 * MIB]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with refused("row 2, column 'large'", "3,145,7", "4,194,304"):
        list(read_table(tmp_path / "a.parquet", DataConfig()))


def test_memory_is_limited_inside_the_block_alone() -> None:
    with pytest.raises(MemoryError), limited_memory(64 * MIB):
        bytearray(4096 * MIB)  # more than memory that the process has freed but not returned
    assert len(bytearray(256 * MIB)) == 256 * MIB


def test_memory_that_arrow_reserves_is_not_the_file_s(tmp_path: Path) -> None:
    """Arrow's default pool reserves 1 GiB at first use, which is as much as the limit leaves."""
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "a.parquet")
    code = (
        "import pyarrow.parquet\nfrom pathlib import Path\nfrom nlp_transfer.settings.schema import DataConfig\n"
        "from nlp_transfer.data.sources.table_reader import scan_table\nprint(scan_table(Path('a.parquet'), DataConfig()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(parquet_reader.__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("(2, ['text'])\n", "")


def test_threads_that_read_leave_the_pool_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    before, inside, second_is_done = pa.default_memory_pool().backend_name, threading.Event(), threading.Event()
    pools: list[str] = []

    def first(path: Path) -> Iterator[int]:
        inside.set()
        second_is_done.wait(0.5)  # it has to wait for this one
        pools.append(pa.default_memory_pool().backend_name)
        yield 1

    def read_second() -> None:
        inside.wait()
        pools.extend(pa.default_memory_pool().backend_name for _ in parquet_reader._limited(lambda _: iter([1]))(tmp_path / "a"))
        second_is_done.set()

    thread = threading.Thread(target=read_second)
    thread.start()
    assert list(parquet_reader._limited(first)(tmp_path / "a")) == [1]
    thread.join()
    assert pools == ["system", before]
    assert pa.default_memory_pool().backend_name == before

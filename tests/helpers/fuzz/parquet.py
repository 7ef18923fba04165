"""Parquet files that fight back: fields of footers and page headers changed one by one, and pages that unfold to gigabytes."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_transfer.data.sources import parquet_reader as reader
from nlp_transfer.data.sources.table_reader import read_table, scan_table
from nlp_transfer.inference.writers import Writer
from nlp_transfer.settings.schema import DataConfig
from tests.helpers.fuzz import thrift
from tests.helpers.fuzz.cases import Case, mutate, odd_text, replaced
from tests.helpers.fuzz.tables import broken

MAGIC = b"PAR1"
SIZES = [0, 1, -1, 2, 7, 64, 255, 2**15, 2**20, 2**24, 2**28, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, -(2**63)]
COLUMN = {"text": "PLAIN", "other": "DELTA_BYTE_ARRAY"}


def columns(rng: random.Random) -> dict[str, Any]:
    """A column `text` and some others, of any type."""
    count = rng.choice([1, 3, 20, 200])
    words = [odd_text(rng, 2) for _ in range(rng.choice([1, 5, count]))]
    kinds: list[Any] = [
        lambda: rng.choice(words), lambda: rng.randrange(-9, 9), rng.random, lambda: rng.random() < 0.5,
        lambda: [rng.choice(words)] * rng.randint(0, 3), lambda: [[1], [], None][: rng.randint(0, 3)],
        lambda: {"a": rng.choice(words), "b": [1]}, lambda: b"\xff\0",
    ]  # fmt: skip
    found: dict[str, Any] = {"text": [rng.choice(words) for _ in range(count)]}
    for name in ("other", "more")[: rng.randint(0, 2)]:
        make = rng.choice(kinds)
        cells = [None if rng.random() < 0.2 else make() for _ in range(count)]
        found[name] = cells
    return found


def write(rng: random.Random, path: Path) -> None:
    table = pa.table(columns(rng))
    if rng.random() < 0.2:
        table = table.set_column(0, "text", table.column(0).dictionary_encode())
    how: dict[str, Any] = {}
    if rng.random() < 0.3 and all(kind in (pa.string(), pa.binary()) for kind in table.schema.types):
        how = {"use_dictionary": False, "column_encoding": dict.fromkeys(table.column_names, "DELTA_BYTE_ARRAY")}
    pq.write_table(
        table, path, row_group_size=rng.choice([3, 50, 1000]), data_page_version=rng.choice(["1.0", "2.0"]),
        compression=rng.choice(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]), store_schema=rng.random() < 0.5,
        write_page_index=rng.random() < 0.2, write_page_checksum=rng.random() < 0.1, **how,
    )  # fmt: skip


def fields(struct: list[thrift.Field]) -> Iterator[thrift.Field]:
    """Every field of a struct, at all depths."""
    for field in struct:
        yield field
        if field[1] == thrift.STRUCT:
            yield from fields(field[2])
        elif field[1] in (thrift.LIST, thrift.SET) and field[2][0] == thrift.STRUCT:
            for element in field[2][1]:
                yield from fields(element)


def change(rng: random.Random, struct: list[thrift.Field], rare: bool = True) -> None:
    """Changes one field: a number, a text, the length of a list, its presence, or (rarely) its type."""
    field = rng.choice(list(fields(struct)))
    kind, value = field[1], field[2]
    if kind in (thrift.I16, thrift.I32, thrift.I64):
        field[2] = rng.choice([value + 1, value - 1, value * 2, -value, rng.choice(SIZES), rng.randrange(10)])
    elif kind in (thrift.TRUE, thrift.FALSE):
        field[2] = not value
    elif kind == thrift.BINARY:
        field[2] = rng.choice([b"", value * 2, mutate(rng, value), value * 1000, b"\xff\xfe", b"text"])
    elif kind in (thrift.LIST, thrift.SET):
        elements = value[1]
        what = rng.randrange(4)
        if what == 0 and elements:
            del elements[rng.randrange(len(elements))]
        elif what == 1:
            elements *= rng.choice([2, 3, 50])
        elif what == 2:
            rng.shuffle(elements)
        elif elements and value[0] in (thrift.I32, thrift.I64):
            elements[rng.randrange(len(elements))] = rng.choice(SIZES)
    if rare and rng.random() < 0.1:
        struct[:] = [other for other in struct if other is not field] if rng.random() < 0.7 else [*struct, list(field)]


def with_footer(body: bytes, footer: bytes) -> bytes:
    return body + footer + len(footer).to_bytes(4, "little") + MAGIC


def mutated(rng: random.Random, folder: Path) -> Case:
    """A footer or a page header in which single fields say something else, or bytes of pages are others."""
    path = folder / "a.parquet"
    write(rng, path)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    body, footer = content[: -8 - length], thrift.Reader(content[-8 - length : -8]).struct()
    what = rng.randrange(10)
    if what < 5:
        for _ in range(rng.choice([1, 1, 2, 5])):
            change(rng, footer)
    elif what < 8:
        start = rng.choice(list(starts(footer)))
        reader = thrift.Reader(body, start)
        header = reader.struct()
        for _ in range(rng.choice([1, 1, 2])):
            change(rng, header)
        new = thrift.struct_bytes(header)
        body = body[:start] + new + body[reader.at :]
        shift(footer, start, len(new) - (reader.at - start))
    elif what < 9:
        body = body[:4] + mutate(rng, body[4:])
    path.write_bytes(with_footer(body, thrift.struct_bytes(footer)) if what < 9 else mutate(rng, content))
    kind = "Parquet with another " + ("footer" if what < 5 else "page header" if what < 8 else "page" if what < 9 else "byte")
    return broken(kind, path, rng, *rng.choice([("text",), ()])) if rng.random() < 0.5 else predicted(kind, path, rng)


def chunks(footer: list[thrift.Field]) -> Iterator[dict[int, thrift.Field]]:
    for group in next(field[2][1] for field in footer if field[0] == 4):
        for chunk in next(field[2][1] for field in group if field[0] == 1):
            yield {field[0]: field for field in next(field[2] for field in chunk if field[0] == 3)}


def starts(footer: list[thrift.Field]) -> Iterator[int]:
    for chunk in chunks(footer):
        yield from (chunk[number][2] for number in (9, 11) if number in chunk)


def shift(footer: list[thrift.Field], behind: int, by: int) -> None:
    """Moves the offsets of pages behind a position, as a header of another length makes necessary."""
    for chunk in chunks(footer):
        if by and any(chunk[number][2] == behind for number in (9, 11) if number in chunk):
            chunk[7][2] += by
        for number in (9, 11):
            if number in chunk and chunk[number][2] > behind:
                chunk[number][2] += by


def predicted(kind: str, path: Path, rng: random.Random) -> Case:
    """What `predict` does with a table: all columns are kept, and one is read."""
    ending = rng.choice([".parquet", ".csv", ".jsonl", ".tsv", ".txt"])

    def run() -> None:
        scan_table(path, DataConfig())
        with Writer(path.with_name(f"out{ending}"), ending) as writer:
            for batch in read_table(
                path, DataConfig(), rng.choice([7, 100, 10_000]), ["text"], ending != ".txt", mark_faults=True
            ):
                writer.write({"prediction": ["x"] * len(batch)}, batch.table)

    return Case(f"{kind}, predicted", run, (str(path), "--output", "column "))


def unfolding(rng: random.Random, folder: Path) -> Case:
    """A small file that stands for much."""
    path = folder / "a.parquet"
    size = rng.choice([2**10, 2**16, 2**20, 2**22])
    rows = min(rng.choice([1, 64, 1000, 100_000]), 2**37 // size)
    value = pa.array(["x" * size])
    indices = pa.array([0], pa.int32()).take(pa.array([0]).take(pa.array([0] * rows)))
    repeated = pa.DictionaryArray.from_arrays(indices, value)
    null_type = rng.choice([pa.null(), pa.int8()])
    elements = rng.choice([10, 10_000, 5_000_000])
    other = rng.choice([
        lambda: repeated, lambda: repeated, lambda: pa.array(["x" * min(size, 2**20)] * min(rows, 64)),
        lambda: pa.ListArray.from_arrays(pa.array([0, elements], pa.int32()), pa.nulls(elements, null_type)),
        lambda: pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), repeated),
        lambda: pa.array([[["a"] * 10] * 10] * 10),
    ])()  # fmt: skip
    table = pa.table({"text": pa.array(["a"]).take(pa.array([0] * len(other))), "other": other})
    plain = rng.random() < 0.2 and not pa.types.is_nested(other.type) and not pa.types.is_dictionary(other.type)
    pq.write_table(
        table, path, compression=rng.choice(["zstd", "gzip", "snappy"]), store_schema=rng.random() < 0.5,
        dictionary_pagesize_limit=2**30, use_dictionary=not plain, column_encoding=COLUMN if plain else None,
    )  # fmt: skip
    case = predicted("Parquet that unfolds", path, rng)

    def run() -> None:
        with replaced(reader, "MEMORY", 2**27):  # to write a GiB takes longer than an input may
            case.run()

    return replace(case, run=run)


def make(rng: random.Random, folder: Path) -> Case:
    return (unfolding if rng.random() < 0.003 else mutated)(rng, folder)

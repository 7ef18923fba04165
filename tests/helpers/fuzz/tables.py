"""Tables that fight back: well-formed ones, of which every cell must come back, and broken ones of every format."""

import csv
import datetime
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.json_rows import MAX_COLUMNS, MAX_DEPTH
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.checksums import sha256_of
from tests.helpers.fuzz.cases import PIECES, Case, Make, ViolationError, mutate, odd_names, odd_text

Columns = dict[str, list[Any]]
ENCODINGS = [
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "gb18030", "shift_jis", "big5",
    "iso2022_jp",
]  # fmt: skip
NO_ENCODINGS = [
    "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "rot13", "base64", "zip", "nope", "utf-8\0", "hz",
    "x" * 999,
]  # fmt: skip


def table(path: Path, data: DataConfig, size: int) -> Columns:
    """A table read in batches, put together."""
    found: Columns = {}
    length = 0
    for batch in read_table(path, data, size):
        if len(batch) > size or any(len(values) != len(batch) for values in batch.columns.values()):
            raise ViolationError(
                f"a batch has columns of {[len(values) for values in batch.columns.values()]} rows, of at most {size}"
            )
        for name, values in batch.columns.items():
            found.setdefault(name, [None] * length).extend(values)
        length += len(batch)
    return found


def must_be(found: object, right: object) -> None:
    if found != right:
        raise ViolationError(f"read {found!a:.1000} where {right!a:.1000} was written")


def good(kind: str, path: Path, right: Columns, rng: random.Random, **data: Any) -> Case:
    """A table that must come back as it was written, in batches of any size and by name; it may not be refused."""
    size = rng.choice([1, 2, 3, 10_000])

    def run() -> None:
        must_be(table(path, DataConfig(**data), size), right)
        wanted = rng.sample(list(right), rng.randint(1, len(right)))
        rows = read_rows(str(path), "train", DataConfig(**data), wanted)
        must_be(rows.columns, {name: right[name] for name in wanted})
        must_be(list(rows.hashes.values()), [sha256_of(path)])

    return Case(kind, run, ("this one must not be refused",))


def broken(kind: str, path: Path, rng: random.Random, *wanted: str, **data: Any) -> Case:
    """A table that may be refused; where it is not, it must be the same in batches of any size."""

    def run() -> None:
        config = DataConfig(**data)
        whole = table(path, config, 10_000)
        must_be(table(path, config, rng.choice([1, 2, 7])), whole)
        names = list(wanted) or rng.sample(list(whole), min(2, len(whole))) or ["text"]
        rows = read_rows(str(path), "train", config, names)
        must_be(rows.columns, {name: whole[name] for name in rows.columns})

    return Case(kind, run, (str(path), path.name, "data.encoding"))


# -- tables of text -----------------------------------------------------------------------------------------------


def csv_bytes(rng: random.Random, columns: Columns, delimiter: str, header: bool) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator=rng.choice(["\n", "\r\n", "\r"]))
    if header:
        writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def encoded(rng: random.Random, text: str) -> tuple[bytes, dict[str, Any]]:
    """The text in an encoding that can hold it, and the settings to read it with."""
    for name in rng.sample(ENCODINGS, 2):
        try:
            content = text.encode(name)
            if content.decode(name) == text and not text.startswith("\ufeff"):
                return content, {"encoding": name}
        except UnicodeError:
            continue
    mark = rng.random() < 0.3
    return text.encode("utf-8-sig" if mark else "utf-8"), {"encoding": ["utf-8", "cp1252"]} if rng.random() < 0.2 else {}


def good_csv(rng: random.Random, folder: Path) -> Case:
    ending = rng.choice([".csv", ".tsv", ".CSV"])
    names = odd_names(rng, rng.randint(1, 4))
    columns: Columns = {name: [odd_text(rng) for _ in range(rng.randint(1, 6))] for name in names}
    shortest = min(map(len, columns.values()))
    columns = {name: values[:shortest] for name, values in columns.items()}
    delimiter = rng.choice([None, None, ";", "|", "\x01", "é", " "])
    if len(names) == 1 and delimiter is None and any(mark in names[0] for mark in ";\t|,"):
        delimiter = "\x01"  # a header that looks separated by another character is refused unless the separator is given
    header = rng.random() < 0.8 or "" in columns or any(value.startswith("\ufeff") for value in next(iter(columns.values()))[:1])
    text = csv_bytes(rng, columns, delimiter or ("\t" if ending == ".tsv" else ","), header)
    content, data = encoded(rng, text)
    data |= {"delimiter": delimiter} | ({} if header else {"columns": names})
    (folder / f"a{ending}").write_bytes(content)
    return good("well-formed CSV", folder / f"a{ending}", columns, rng, **data)


def json_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 5 else 6)
    if kind <= 2:
        return odd_text(rng)
    if kind <= 5:
        return rng.choice([None, True, False, 0, -1, 10**300, 2**63, 1.5, -0.0, 1e308, 5e-324])
    if kind == 6:
        return [json_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 7:
        deep: Any = odd_text(rng)
        for _ in range(rng.randint(1, MAX_DEPTH - 10)):
            deep = [deep]
        return deep
    return {odd_text(rng, 2): json_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def good_jsonl(rng: random.Random, folder: Path) -> Case:
    rows = [{name: json_value(rng) for name in rng.sample(PIECES, rng.randint(0, 4))} for _ in range(rng.randint(1, 6))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        rows[0], names = {"text": "a"}, ["text"]
    ascii_only = rng.random() < 0.5
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + rng.choice(["\n", "\r\n"]) for row in rows)
    content, data = encoded(rng, text + rng.choice(["", "\n", " \n\n"]))
    (folder / "a.jsonl").write_bytes(content)
    return good("well-formed JSONL", folder / "a.jsonl", {name: [row.get(name) for row in rows] for name in names}, rng, **data)


def lines_of(rng: random.Random, count: int) -> list[str]:
    return [odd_text(rng).replace("\n", " ").rstrip("\r") for _ in range(count)]


def good_txt(rng: random.Random, folder: Path) -> Case:
    lines = lines_of(rng, rng.randint(1, 8))
    lines[0] = "x" + lines[0]
    content, data = encoded(rng, "".join(line + rng.choice(["\n", "\r\n"]) for line in lines))
    (folder / "a.txt").write_bytes(content)
    return good("well-formed lines", folder / "a.txt", {"text": lines}, rng, **data)


def mutated_text(rng: random.Random, folder: Path) -> Case:
    make = rng.choice([good_csv, good_jsonl, good_txt])
    make(rng, folder)
    path = next(folder.iterdir())
    path.write_bytes(mutate(rng, path.read_bytes()))
    encoding = (
        rng.choice([*ENCODINGS, *NO_ENCODINGS, ["utf-8", "utf-16", "cp1252"], ["ascii"]]) if rng.random() < 0.5 else "utf-8"
    )
    data = {
        "encoding": encoding,
        "quoting": rng.choice(["minimal", "none"]),
        "columns": rng.choice([None, ["text"], ["text", "label"]]),
    }
    return broken(f"broken {path.suffix.lower()}", path, rng, **data)


def odd_csv(rng: random.Random, folder: Path) -> Case:
    end = rng.choice(["\n", "\r\n", "\r"])
    header = rng.choice([
        "text,label", "text,text", ",", ",,", "", " ", "text", '"text', '"text","label"', "text;label",
        "\ufeff\ufefftext,label", "\0,\0\0", "text,label,", "x" * rng.choice([200, 200_000]) + ",label",
        ",".join(f"c{i}" for i in range(rng.choice([50, MAX_COLUMNS + 1]))), "tеxt,label",
    ])  # fmt: skip
    rows = [
        rng.choice(
            ["a,b", "a", "a,b,c", "", '"a,b', '"a"b,c', '"a""",b', "\0,\0", "a,b" + end, ",", " , ", '"\n\n",b', "é,ß", "'a',b"]
        )
        for _ in range(rng.randint(0, 5))
    ]
    path = folder / f"a{rng.choice(['.csv', '.tsv'])}"
    path.write_bytes(
        (header + end + end.join(rows) + rng.choice(["", end, end * 3])).encode(rng.choice(["utf-8", "utf-8", "utf-16"]))
    )
    return broken("odd CSV", path, rng, encoding=rng.choice(["utf-8", "utf-8", "utf-16"]))


def odd_jsonl(rng: random.Random, folder: Path) -> Case:
    depth = rng.choice([5, MAX_DEPTH, MAX_DEPTH + 1, 500, 990, 2000, 10_000])
    odd = [
        "[" * depth + "]" * depth, '{"text":' + "[" * depth + "]" * depth + "}", '{"a":' * depth + "1" + "}" * depth,
        "[" * depth, '{"text": NaN, "label": Infinity}', '{"text": -Infinity}',
        f'{{"text": {"9" * rng.choice([100, 4300, 5000])}}}', '{"text": 1e99999}', '{"text": "\\ud800"}',
        '{"text": "\\udc00\\ud800"}', '{"\\ud800": 1}', '{"text": "\\ud83c\\udf89"}', '{"text": "a", "text": "b"}',
        '{"text": {"a": 1, "a": 2}}', "1", "null", '"a"', "[]", "{}", "true", "{'text': 1}", '{"text": 1,}',
        '{"text": "a"} {"text": "b"}', '{"text": "\t"}', '\ufeff{"text": "a"}', '{"text": "\0"}', "", " ", "\x1c", "// x",
        '{"translation": {"text": "a", "label": "b"}}', '{"translation": "a"}', '{"translation": {"": null}}',
        '{"text": "a", "label": "b"}',
    ]  # fmt: skip
    end = rng.choice(["\n", "\r\n", "\r"])
    path = folder / "a.jsonl"
    path.write_bytes((end.join(rng.choices(odd, k=rng.randint(1, 4))) + rng.choice(["", end])).encode())
    return broken("odd JSONL", path, rng)


def late_keys(rng: random.Random, folder: Path) -> Case:
    path = folder / "a.jsonl"
    count = rng.choice([30, 300, MAX_COLUMNS + 1])
    path.write_text("".join(f'{{"k{i}": 1, "text": "{i}"}}\n' for i in range(count)))

    def run() -> None:
        read_rows(str(path), "train", DataConfig(), ["text"])
        if count > MAX_COLUMNS:
            raise ViolationError(f"{count} columns were read")

    return Case("a new key in each row", run, (f"at most {MAX_COLUMNS:,}",))


# -- Parquet ------------------------------------------------------------------------------------------------------


def good_parquet(rng: random.Random, folder: Path) -> Case:
    count = rng.randint(1, 150)
    kinds: list[Callable[[], Any]] = [
        lambda: odd_text(rng), lambda: rng.randrange(-(2**63), 2**63), rng.random, lambda: rng.random() < 0.5,
        lambda: [odd_text(rng, 1) for _ in range(rng.randint(0, 2))], lambda: {"a": odd_text(rng, 1), "b": [1]},
        lambda: b"\xff\0",
    ]  # fmt: skip
    columns: Columns = {}
    for name in odd_names(rng, rng.randint(1, 4)):
        make = rng.choice(kinds)
        columns[name] = [None if rng.random() < 0.1 else make() for _ in range(count)]
    path = folder / "a.parquet"
    pq.write_table(
        pa.table(columns), path, row_group_size=rng.choice([7, 1000]), compression=rng.choice(["none", "snappy", "zstd"])
    )
    return good("well-formed Parquet", path, columns, rng)


def broken_parquet(rng: random.Random, folder: Path) -> Case:
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": [odd_text(rng) for _ in range(20)], "label": [["a"], []] * 10}), path)
    content = path.read_bytes()
    what = rng.randrange(4)
    if what == 0:
        content = content[: rng.randrange(len(content))]
    elif what == 1:
        content = (
            rng.choice([b"PAR1", b"PARE", b"PAR1PAR1", b"PAR1" + b"\xff" * 8 + b"PAR1", b"ORC", b"PK\3\4", b"\x89HDF"])
            + content[8:]
        )
    else:
        content = mutate(rng, content)
    path.write_bytes(content)
    return broken("broken Parquet", path, rng)


def odd_parquet(rng: random.Random, folder: Path) -> Case:
    deep: pa.DataType = pa.string()
    for _ in range(rng.choice([3, 60])):
        deep = pa.list_(deep)
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    arrays = [
        pa.array([10**7], pa.date32()), pa.array([-(10**7)], pa.date32()), pa.array([2**62], pa.timestamp("us")), text,
        pa.array([1], pa.timestamp("us", tz="Nowhere/Land")), pa.array([1], pa.timestamp("ns")),
        pa.array([2**62], pa.duration("s")), pa.array([None], deep), pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([None], pa.null()), pa.array([b"\xff"], pa.binary()), pa.array(["a"]).dictionary_encode(),
        pa.array([datetime.time(1)]), pa.array([1.5], pa.float16()), pa.array(["1" * 30]).cast(pa.decimal128(38)),
        pa.array([2**60], pa.time64("ns")),
    ]  # fmt: skip
    names = rng.choice([["text", "label"], ["text", "text"], ["", "label"], ["text\0", "\ufefftext"]])
    path = folder / "a.parquet"
    pq.write_table(pa.table([rng.choice(arrays), rng.choice(arrays)], names=names), path)
    if rng.random() < 0.1:
        pq.write_table(pa.table({}) if rng.random() < 0.5 else pa.table({"text": pa.array([], pa.string())}), path)
    return broken("Parquet of odd types", path, rng)


MAKERS: list[tuple[Make, float]] = [
    (good_csv, 12), (good_jsonl, 8), (good_txt, 5), (good_parquet, 6), (mutated_text, 20), (odd_csv, 10), (odd_jsonl, 8),
    (late_keys, 0.2), (broken_parquet, 8), (odd_parquet, 5),
]  # fmt: skip

"""Files that fight back: tables, and all that is around them: line-aligned files, folders, globs, pipes, devices, odd paths."""

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_transfer.data import sources
from nlp_transfer.data.sources import read_rows, table_reader
from nlp_transfer.data.sources.file_reading import MAX_ROW
from nlp_transfer.data.sources.table_reader import ENDINGS, read_table
from nlp_transfer.settings.schema import DataConfig
from tests.helpers.fuzz import tables
from tests.helpers.fuzz.cases import Case, Make, ViolationError, odd_text, replaced, weighted
from tests.helpers.fuzz.tables import csv_bytes, lines_of, must_be, table

TEXT_ENDINGS = [".csv", ".tsv", ".jsonl", ".txt"]


def good_aligned(rng: random.Random, folder: Path) -> Case:
    count = rng.randint(1, 8)
    sides = {side: ["x" + line for line in lines_of(rng, count)] for side in ("source", "target")}
    files = {}
    for side, lines in sides.items():
        files[side] = str(folder / f"a.{side}")
        Path(files[side]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    more = rng.choice([0, 0, 0, 1])
    if more:
        with open(files["target"], "a", encoding="utf-8") as file:
            file.write("one more\n")

    def run() -> None:
        rows = read_rows(files, "train", DataConfig(), ["source", "target"])
        must_be(rows.columns, sides)

    return Case("aligned lines", run, (f"{count + 1} lines",) if more else ("must not be refused",))


def good_classes(rng: random.Random, folder: Path) -> Case:
    rows = {}
    for _ in range(rng.randint(1, 5)):
        name = odd_text(rng, 2).translate({ord("/"): None, 0: None})[:80].encode()[:200].decode(errors="ignore")
        if name in ("", ".", ".."):
            name = "a"
        (folder / "d" / name).mkdir(parents=True, exist_ok=True)
        path = folder / "d" / name / f"{rng.randrange(99)}{rng.choice(['.txt', '.TXT'])}"
        text = "x" + odd_text(rng)
        path.write_bytes(text.encode())
        rows[path] = (text.replace("\r\n", "\n").replace("\r", "\n"), name)

    def run() -> None:
        found = read_rows(str(folder / "d"), "train", DataConfig(), ["text", "label"])
        right = [rows[path] for path in sorted(rows)]
        must_be(list(zip(found.columns["text"], found.columns["label"], strict=True)), right)

    return Case("class folders", run, ("must not be refused",))


def good_glob(rng: random.Random, folder: Path) -> Case:
    right = []
    for i in range(rng.randint(1, 5)):
        depth = rng.randint(0, 3)
        path = folder.joinpath("[g]", *rng.choices(["a", "b c", "[x]", "é", "*"], k=depth), f"{i}.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text\n{i}\n")
        right.append((str(path), str(i)))
    if rng.random() < 0.5:
        for name in "lm":  # links in circles, twice: 2 to the power of 40 paths
            (folder / "[g]" / name).symlink_to(".")
        (folder / "[g]" / ".hidden.csv").write_text("no table")
    pattern = f"{folder}/[[]g]/**/{rng.choice(['*.csv', '?.csv', '**/[0-9].csv', '**'])}"

    def run() -> None:
        rows = read_rows(pattern, "train", DataConfig(), ["text"])
        must_be(rows.columns["text"], [text for _, text in sorted(right)])

    return Case("globs", run, ("file extension", ".csv: ") if pattern.endswith("**") else ("must not be refused",))


# -- what is no file, or does not stay one ------------------------------------------------------------------------


def no_file(path: Path, rng: random.Random) -> None:
    """Puts something at `path` that must be refused, without waiting for its end."""

    def socket_file() -> None:
        if len(str(path)) < 100:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))

    devices = ["/dev/zero", "/dev/null", "/dev/full", "/dev/urandom"]
    makers: list[Callable[[], object]] = [
        lambda: os.mkfifo(path), lambda: path.symlink_to(rng.choice(devices)), path.mkdir, lambda: path.symlink_to(path.name),
        lambda: path.symlink_to(path.parent / "nowhere"), socket_file, lambda: path.write_bytes(b""), lambda: None,
        lambda: path.symlink_to(rng.choice(["/proc/self/mem", "/proc/self/maps", "/proc/kmsg"])),
    ]  # fmt: skip
    rng.choice(makers)()


def not_regular(rng: random.Random, folder: Path) -> Case:
    path = folder / f"a{rng.choice(ENDINGS)}"
    no_file(path, rng)
    source: Any = rng.choice([str(path), {"source": str(path), "target": str(path) + "2"}, f"{folder}/*"])
    wanted = ["text", "label"]
    names = [path.name, str(folder)]
    if rng.random() < 0.3:
        (folder / "d" / "x").mkdir(parents=True)
        (folder / "d" / "x" / "2.txt").write_text("x")
        no_file(folder / "d" / "x" / "1.txt", rng)
        source = str(folder / "d")

    def run() -> None:
        rows = read_rows(source, "train", DataConfig(), wanted)
        must_be((source, len(rows)), (str(folder / "d"), sum(1 for _ in folder.glob("d/*/*"))))

    return Case("no file", run, tuple(names))


def changed(rng: random.Random, folder: Path) -> Case:
    """A file that vanishes, shrinks or grows between two looks at it."""
    ending = rng.choice(ENDINGS)
    path = folder / f"a{ending}"
    columns = {"text": [f"row {i}" for i in range(30_000 if rng.random() < 0.05 else 300)]}
    if ending == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=50)
    elif ending in (".json", ".jsonl"):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in columns["text"]))
    else:
        path.write_text("text\n" + "".join(f"{text}\n" for text in columns["text"]))
    how = rng.randrange(4)
    size = path.stat().st_size

    def change() -> None:
        if how == 0:
            path.unlink(missing_ok=True)
        elif how == 1:
            os.truncate(path, rng.randrange(size))
        elif how == 2:
            with path.open("ab") as file:
                file.write(b"more\n")
        else:
            path.write_bytes(b"\xff\0" * 9)

    owner, name = rng.choice(
        [(sources, "sha256_of"), (table_reader, "choose_encoding"), (table_reader, "open_text"), (sources, "from_columns")]
    )
    true = getattr(owner, name)

    def first_change(*arguments: Any, **named: Any) -> Any:
        change()
        return true(*arguments, **named)

    def run() -> None:
        batches = read_table(path, DataConfig(), 64)
        with replaced(owner, name, first_change):
            if rng.random() < 0.5:
                read_rows(str(path), "train", DataConfig(encoding=["utf-8", "utf-16"]), ["text"])
                return
        for _ in batches:
            change()

    return Case("changed while it is read", run, (str(path),))


def odd_path(rng: random.Random, folder: Path) -> Case:
    name = odd_text(rng, 3).replace("/", "")[:150] or "x"
    raw = os.fsencode(str(folder)) + b"/" + rng.choice([b"", b"\xff", b"-", b"~"]) + name.encode()
    path = os.fsdecode(raw) + rng.choice([".csv", ".csv", "/", "", ".CsV"])
    exists = rng.random() < 0.6 and "\0" not in path and not path.endswith(("/", "/.", "/.."))
    if exists:
        Path(path).write_text("text\na\n")
    source = path if rng.random() < 0.8 else rng.choice([
        "~nobody/a.csv", f"{folder}/.", f"{folder}//", "/a\0.csv", "/a\0/*.csv", f"{folder}/**/**/**/*", f"{folder}/[",
        f"{folder}/[]",
        "/" + "x" * 5000, "/" + "a/" * 3000 + "*.csv", f"{folder}/" + "*/" * 30, f"{folder}/" + "*a" * 500 + ".csv", "pypi:",
        "pypi:a==1#../x", "pypi:a==" + "1" * 5000 + "#x", "pypi:" + "a-" * 3000, "\ud800.csv",
        f"{folder}/../nothing/*.csv", "pypi:a==1#x\0", "file:///etc/passwd",
    ])  # fmt: skip
    names = (source[:10], repr(source)[1:10], str(folder), "glob", "found no class folders", "no ")

    def run() -> None:
        rows = read_rows(source, rng.choice(["train", "test"]), DataConfig(), ["text"])
        must_be((exists, rows.columns), (True, {"text": ["a"]}))

    return Case("odd paths", run, names)


# -- large ones ---------------------------------------------------------------------------------------------------


def large(rng: random.Random, folder: Path) -> Case:
    ending = rng.choice(ENDINGS)
    path = folder / f"a{ending}"
    columns = {"text": [rng.choice(["x", "é", "漢", '"', "a\n", "🎉"]) * 10_000_000]}
    if ending == ".txt":
        columns["text"][0] = columns["text"][0].replace("\n", " ").replace("\r", " ")
    if ending in (".json", ".jsonl"):
        path.write_text(json.dumps({"text": columns["text"][0][:8_000_000]}, ensure_ascii=False) + "\n", encoding="utf-8")
    elif ending == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif ending == ".txt":
        path.write_text(columns["text"][0] + "\n", encoding="utf-8", newline="")
    else:
        path.write_text(csv_bytes(rng, columns, ",", True), encoding="utf-8", newline="")
    return Case(
        "a cell of 10 million characters",
        lambda: must_be(len(table(path, DataConfig(), 100)["text"]), 1),
        ("16,777,216 characters",),
    )


def too_large(rng: random.Random, folder: Path) -> Case:
    ending = rng.choice(TEXT_ENDINGS)
    path = folder / f"a{ending}"
    with path.open("wb") as file:
        if rng.random() < 0.5:  # five gigabytes of nothing, on a file system that keeps none of them
            file.write(b"text\n")
            file.truncate(5 * 2**30)
        else:
            file.write(b'text\n"' + (b"x" * 99 + b"\n" * (ending in (".csv", ".tsv"))) * (MAX_ROW // 99 + 1))

    def run() -> None:
        raise ViolationError(f"it was read: {table(path, DataConfig(), 100).keys()}")

    return Case("a row without end", run, ("16,777,216 characters",))


MAKERS: list[tuple[Make, float]] = [
    *tables.MAKERS, (good_aligned, 4), (good_classes, 4), (good_glob, 4), (not_regular, 6), (changed, 5), (odd_path, 6),
    (large, 0.02), (too_large, 0.02),
]  # fmt: skip
make = weighted(MAKERS)

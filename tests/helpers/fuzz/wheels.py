"""Wheels that fight back: archives that would escape, overwrite, fill the disk, or are damaged; and caches that are."""

import io
import random
import shutil
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

from nlp_transfer.data.sources import wheels
from nlp_transfer.utils.errors import UserError
from tests.helpers.fuzz.cases import Case, ViolationError, mutate, odd_text, replaced

NAME = "toy-data==1.0.0"
WHEEL = "toy_data-1.0.0-py3-none-any.whl"
FILES = {
    "toy/train.csv": b"text\na\n",
    "toy/more/deep.csv": b"text\nb\n",
    "toy/__init__.py": b"raise SystemExit",
    "toy/a[1].txt": b"x",
}
CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def archive(rng: random.Random, entries: dict[str, bytes], *more: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    file = io.BytesIO()
    method = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as made:
        warnings.simplefilter("ignore")  # names that are there twice are what is wanted here
        for name, content in [*entries.items(), *more]:
            made.writestr(name, content)
    return file.getvalue()


def unsafe_entry(rng: random.Random, outside: Path) -> zipfile.ZipInfo:
    name = rng.choice([
        "../escaped", "toy/../../../../../escaped", f"{outside}/escaped", "//escaped", "C:/escaped", "toy\\..\\escaped", "..",
        "toy/./../../../../../escaped", ".", "./", "", "/", "toy//train.csv", "TOY/TRAIN.CSV", "toy/train.csv/below",
        "toy/train.csv/", "toy/more", "toy/" + "x" * 300, "x/" * 600 + "y", "toy/a\0b", "toy/\n", "con", "toy/é", "~/x",
        "toy/ ", "toy/a:b",
    ])  # fmt: skip
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name
    if rng.random() < 0.3:
        entry.external_attr = (rng.choice([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFREG, stat.S_IFSOCK]) | 0o777) << 16
    if rng.random() < 0.1:  # a second name, in the field for one in Unicode
        other = b"../../../../escaped"
        crc = zlib.crc32(name.encode())
        entry.extra = struct.pack("<HHBL", 0x7075, len(other) + 5, 1, crc) + other
    return entry


def set_in_all(content: bytes, mark: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with a field of every header of one kind overwritten."""
    data = bytearray(content)
    at = data.find(mark)
    while at >= 0 and at + offset + struct.calcsize(form) <= len(data):
        struct.pack_into(form, data, at + offset, value)
        at = data.find(mark, at + 4)
    return bytes(data)


def hostile(rng: random.Random, outside: Path) -> tuple[str, bytes]:
    """A kind of damage, and an archive that has it."""
    good = archive(rng, FILES)
    what = rng.randrange(11)
    if what <= 2:
        entries = [(unsafe_entry(rng, outside), b"/etc/passwd") for _ in range(rng.randint(1, 3))]
        return "unsafe entries", archive(rng, FILES, *entries)
    if what <= 4:
        return "broken bytes", mutate(rng, good)
    if what == 5:
        return "cut short", good[: rng.randrange(len(good))]
    if what == 6:
        return "encrypted", set_in_all(set_in_all(good, CENTRAL, 8, "<H", 1), LOCAL, 6, "<H", 1)
    if what == 7:
        return "wrong checksum", set_in_all(set_in_all(good, CENTRAL, 16, "<L", 7), LOCAL, 14, "<L", 7)
    if what == 8:
        method = rng.choice([1, 6, 9, 12, 14, 93, 97, 99, 0xFFFF])
        return "other compression", set_in_all(set_in_all(good, CENTRAL, 10, "<H", method), LOCAL, 8, "<H", method)
    if what == 9:
        size = rng.choice([0, 10, 10**6, 2**30, 2**32 - 1])
        return "forged sizes", set_in_all(good, CENTRAL, rng.choice([20, 24]), "<L", size)
    bomb = bytes(rng.choice([100_000, 3_000_000]))
    return "a bomb", archive(rng, {**FILES, "toy/bomb.csv": bomb})


def damage_cache(rng: random.Random, folder: Path) -> None:
    """What a crash, a full disk or a curious user leaves in a wheel's folder."""
    what, kept, files = rng.randrange(7), folder / WHEEL, folder / "files"
    if what == 0:
        (folder / "sha256").write_bytes(rng.choice([b"", b"\xff\xfe", b"0" * 64, b"\n", b"x" * 10_000]))
    elif what == 1 and kept.is_file():
        kept.write_bytes(mutate(rng, kept.read_bytes()))
    elif what == 2:
        (folder / "part-left").mkdir(exist_ok=True)
    elif what == 3:
        for path in folder.glob("files/toy/*.csv"):
            path.write_bytes(b"x")
    elif what == 4 and files.is_dir():
        shutil.rmtree(files)
        files.write_text("a file")
    elif what >= 5 and kept.is_file():
        kept.unlink()
        if what == 6:
            kept.mkdir()


def make(rng: random.Random, folder: Path) -> Case:
    outside, cache = folder.parent, folder / "cache"
    kind, content = hostile(rng, outside)
    if rng.random() < 0.15:
        kind, content = "well-formed wheel", archive(rng, FILES)
    limit = rng.choice([wheels.MAX_UNPACKED_BYTES, wheels.MAX_UNPACKED_BYTES, 50, 10**6])
    small = rng.choice([wheels.SMALL_BYTES, 10**6])
    paths = [
        rng.choice(["toy", "toy/train.csv", "toy/*.csv", "*/*", "toy/more", "toy/a[1].txt", "toy/bomb.csv", odd_text(rng, 2)])
        for _ in range(2)
    ]
    damage = rng.random() < 0.3

    def pip(requirement: str, target: Path) -> None:
        (target / WHEEL).write_bytes(content)

    def run() -> None:
        refused: UserError | None = None
        with (
            replaced(wheels, "_run_pip", pip),
            replaced(wheels, "MAX_UNPACKED_BYTES", limit),
            replaced(wheels, "SMALL_BYTES", small),
        ):
            for path in paths:
                try:
                    check(path, wheels.fetch(f"pypi:{NAME}#{path}", cache))
                except UserError as error:
                    refused = error
                if damage and (cache / "wheels" / "toy-data-1.0.0").is_dir():
                    damage_cache(rng, cache / "wheels" / "toy-data-1.0.0")
        check_tree(folder)
        if refused is not None:
            raise refused

    def check(path: str, found: Path) -> None:
        if kind == "well-formed wheel" and not damage and path in FILES and found.read_bytes() != FILES[path]:
            raise ViolationError(f"{path}: read {found.read_bytes()!r}")

    return Case(kind, run, ("pypi:", "--"))


def check_tree(folder: Path) -> None:
    """Nothing but plain files and folders, none of them what was to escape, and no more than was asked for."""
    if found := [path.name for path in folder.iterdir() if path.name != "cache"]:
        raise ViolationError(f"written outside of the cache: {found}")
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ViolationError(f"{path} is no plain file")
        if "escaped" in path.name or (path.name.startswith("part-") and path.name != "part-left"):
            raise ViolationError(f"{path} was left")
        if path.is_file() and path.stat().st_size > 4_000_000:
            raise ViolationError(f"{path} has {path.stat().st_size} bytes")

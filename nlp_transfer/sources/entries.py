"""The entries of an archive, none of which may lead out of the folder that it is unpacked to."""

import stat
import zipfile
from pathlib import PurePosixPath, PureWindowsPath

from nlp_transfer.config import shorten
from nlp_transfer.errors import UserError

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

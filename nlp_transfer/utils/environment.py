"""What depends on the operating system, the user and the interpreter: folders, standard streams, imports and memory.

Functions that only some systems have are called in this module alone, with a fallback, so that the rest of the package runs on
every system.
"""

import gc
import getpass
import io
import os
import select
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from nlp_transfer.utils.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PORTABLE = "names of letters, digits, '_' and '-' that are no devices of Windows, such as reviews_2"
RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))]
)  # Windows has devices of these names in every folder, with any file extension


# --- folders


def expand(path: str | Path) -> Path:
    """Replace a leading `~` by the user's home folder. A name such as `~notes.csv`, where there is no such user, stays.

    Raises:
        UserError: the path needs a home folder and this user has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).parts[0] != "~":
            return Path(path)
    raise UserError(f"{path}: '~' is the home folder, and this user has none (HOME is not set); allowed: the whole path")


def user_cache(name: str) -> Path:
    """The folder `name` in `$XDG_CACHE_HOME` or `~/.cache`; where the latter cannot be created, in `fallback_cache`."""
    if named := os.environ.get("XDG_CACHE_HOME"):  # as the user said, also where it cannot be written: then errors name it
        return expand(named) / name
    base = os.path.expanduser("~/.cache")
    folder = Path(base, name).absolute()
    if not base.startswith("~") and (os.path.isdir(folder) or _can_create(folder)):
        return folder
    return fallback_cache() / name


def _can_create(folder: Path) -> bool:
    existing = next((place for place in folder.parents if os.path.lexists(place)), folder)
    try:
        with tempfile.TemporaryFile(dir=existing):  # permissions do not say it: root may write anywhere but in /proc, say
            return True
    except OSError:
        return False


@cache
def fallback_cache() -> Path:
    """A folder that only this user can enter, among the temporary files."""
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # nothing can be written anywhere; whoever needs a cache reports that
        return Path.cwd() / ".nlp_transfer_cache"
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = parent / ("nlp_transfer" if user is None else f"nlp_transfer-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and (user is None or (found.st_uid == user and not found.st_mode & 0o077))
    except OSError:
        private = False
    return folder if private else Path(tempfile.mkdtemp(prefix="nlp_transfer-"))  # another user may have made it first


def uses_fallback(folder: Path) -> bool:
    """Whether `user_cache` gave a folder in `fallback_cache`, which is not created to find that out."""
    return bool(fallback_cache.cache_info().currsize) and folder.is_relative_to(fallback_cache())


def prepare_libraries() -> None:
    """Set what libraries read when they are imported: what of them this toolkit does not need, and a home folder and a name,
    where this user has none."""
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets and evaluate count each use at an address elsewhere
    # For a hub model without safetensors transformers would ask a service elsewhere to convert it, by a pull request.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    if not os.environ.get("HF_HOME") and uses_fallback(folder := user_cache("huggingface")):
        os.environ["HF_HOME"] = str(folder)
    try:
        getpass.getuser()
    except Exception:  # of a kind that depends on the system and on the version of Python
        os.environ["LOGNAME"] = str(os.getuid()) if hasattr(os, "getuid") else "user"


def is_portable(name: str) -> bool:
    """Whether a name of letters, digits, `_`, `-` and `.` can be a file's on every system."""
    return name.partition(".")[0].casefold() not in RESERVED and not name.endswith(".")


# --- standard streams


def open_streams() -> None:
    """Make stdin, stdout and stderr usable: open those that the process was started without, and let them hold any character.

    A character that the console's encoding lacks is written as `\\u2026`. Where a descriptor is closed, the next file that is
    opened would get its number, and what other code prints would be written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # a new file gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_is_closed() -> bool:
    """Whether whoever read standard output or standard error is gone."""
    return any(_is_closed(stream) for stream in (sys.stdout, sys.stderr))


def _is_closed(stream: object) -> bool:
    try:
        stream.flush()  # type: ignore[attr-defined]
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[attr-defined]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # no `poll` on this system, or no file below the stream
        return False


def finish_output() -> bool:
    """Write what standard output and error still hold; false where that fails, and then nothing more is written to them."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            getattr(getattr(stream, "buffer", None), "release", stream.flush)()  # of a `redactor.Redactor`
        except (OSError, ValueError):
            written = False
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python complains when it flushes at its end
            except (OSError, ValueError):
                continue
    return written


# --- memory and imports


def peak_memory() -> int:
    """Bytes that this process held at most; where the system does not say that, those that it holds now."""
    if resource is None:
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


@contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection during heavy imports, and exclude the imported objects from later collections.

    This saves about 20 % of the import time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

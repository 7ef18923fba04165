"""Platform-dependent code: folders, standard streams, imports and memory."""

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

PORTABLE = "names of letters, digits, '_' and '-' that are not names of Windows devices, such as reviews_2"
RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{number}" for name in ("com", "lpt") for number in range(10))]
)  # device names on Windows, in every folder and with any extension


# --- folders


def expand(path: str | Path) -> Path:
    """Expand a leading `~` to the home folder. A name such as `~notes.csv` does not change if there is no such user.

    Raises:
        UserError: the path needs a home folder, and this user has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if Path(path).parts[0] != "~":
            return Path(path)
    raise UserError(f"{path}: '~' is the home folder, but this user has none (HOME is not set); use an absolute path")


def user_cache(name: str) -> Path:
    """Return the folder `name` in `$XDG_CACHE_HOME` or else in `~/.cache`; in `fallback_cache` if `~/.cache` is not usable."""
    if configured := os.environ.get("XDG_CACHE_HOME"):  # even if it is not writable, so that the error names it
        return expand(configured) / name
    base = os.path.expanduser("~/.cache")
    folder = Path(base, name).absolute()
    if not base.startswith("~") and (os.path.isdir(folder) or _can_create(folder)):
        return folder
    return fallback_cache() / name


def _can_create(folder: Path) -> bool:
    existing = next((place for place in folder.parents if os.path.lexists(place)), folder)
    try:
        with tempfile.TemporaryFile(dir=existing):  # checking permissions is not enough: root cannot write to /proc
            return True
    except OSError:
        return False


@cache
def fallback_cache() -> Path:
    """Return a temporary folder that only this user can access."""
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:  # nothing is writable; reported when a cache is needed
        return Path.cwd() / ".nlp_transfer_cache"
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = parent / ("nlp_transfer" if user is None else f"nlp_transfer-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_private = stat.S_ISDIR(status.st_mode) and (user is None or (status.st_uid == user and not status.st_mode & 0o077))
    except OSError:
        is_private = False
    return folder if is_private else Path(tempfile.mkdtemp(prefix="nlp_transfer-"))  # another user may have created it


def default_cache() -> Path:
    """Return `$NLP_TRANSFER_CACHE`, or `$XDG_CACHE_HOME/nlp_transfer`, or `~/.cache/nlp_transfer`."""
    if configured := os.environ.get("NLP_TRANSFER_CACHE"):
        return expand(configured)
    folder = user_cache("nlp_transfer")
    if uses_fallback(folder):
        from nlp_transfer.utils.console import say_once  # loads rich, which `--help` does not need

        say_once(
            f"there is no writable home folder, so caches are in {fallback_cache()} (NLP_TRANSFER_CACHE and HF_HOME change that)"
        )
    return folder


def uses_fallback(folder: Path) -> bool:
    """Whether `user_cache` returned this folder from `fallback_cache`; does not create the fallback."""
    return bool(fallback_cache.cache_info().currsize) and folder.is_relative_to(fallback_cache())


def prepare_libraries() -> None:
    """Set environment variables that libraries read on import.

    They disable usage counts and conversions to safetensors, and set the Hugging Face cache and the user name if missing.
    """
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # usage counts of datasets and evaluate
    # For a hub model without safetensors, transformers would request a conversion by pull request.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    if not os.environ.get("HF_HOME") and uses_fallback(folder := user_cache("huggingface")):
        os.environ["HF_HOME"] = str(folder)
    try:
        getpass.getuser()
    except Exception:  # the type depends on the system and the Python version
        os.environ["LOGNAME"] = str(os.getuid()) if hasattr(os, "getuid") else "user"


def is_portable(name: str) -> bool:
    """Whether a name of letters, digits, `_`, `-` and `.` is a valid file name on every system."""
    return name.partition(".")[0].casefold() not in RESERVED and not name.endswith(".")


# --- standard streams


def open_streams() -> None:
    """Open missing standard streams, and make standard output and error accept any character.

    If a stream is missing, the next opened file would get its descriptor, and output of other code would be written to that
    file. Characters that are not in the encoding of a stream are written as escapes such as `\\u2026`.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their descriptors
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def output_is_closed() -> bool:
    """Whether a reader has closed standard output or standard error."""
    return any(_is_closed(stream) for stream in (sys.stdout, sys.stderr))


def _is_closed(stream: object) -> bool:
    try:
        stream.flush()  # type: ignore[attr-defined]
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[attr-defined]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # the system has no `poll`, or the stream no file
        return False


def finish_output() -> bool:
    """Flush standard output and error. If that fails, discard further output and return False."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            getattr(getattr(stream, "buffer", None), "release", stream.flush)()  # a `Redactor` prints the text that it holds back
        except (OSError, ValueError):
            written = False
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # otherwise flushing fails at exit
            except (OSError, ValueError):
                continue
    return written


# --- memory and imports


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, or the current memory if the system does not report the peak."""
    if resource is None:
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


@contextmanager
def without_collection() -> Iterator[None]:
    """Disable garbage collection during heavy imports, which saves about 20 % of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Like `without_collection`, for commands: the imported objects are also excluded from later collections."""
    try:
        with without_collection():
            yield
    finally:
        gc.freeze()

"""What a hostile input is, what it may do, and the odd texts that all of them are made of."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nlp_transfer.utils.errors import LONGEST, SHOWN, UserError

SECONDS = 5.0  # of computing: a busy machine is no fault
PATIENCE = 120.0  # seconds on the clock: what waits does not compute
MESSAGE = (LONGEST + 100) * (SHOWN + 1)  # characters: what fits on a screen or two


class ViolationError(Exception):
    """An input did what none may do."""


class _TimeIsUp(BaseException):  # no Exception, so that nothing catches it on its way
    pass


@dataclass(frozen=True)
class Case:
    """One input. `run` reads it, and raises a ViolationError where what it read is wrong; a refusal holds one of `names`."""

    kind: str
    run: Callable[[], object]
    names: tuple[str, ...]


Make = Callable[[random.Random, Path], Case]


def weighted(makers: list[tuple[Make, float]]) -> Make:
    """Return a maker that draws one of several by their weights."""
    return lambda rng, folder: rng.choices([one for one, _ in makers], [weight for _, weight in makers])[0](rng, folder)


def attempt(case: Case, seconds: float = SECONDS, patience: float = PATIENCE) -> str:
    """`returned` or `refused`.

    Raises:
        ViolationError: it took longer, raised something other than a UserError, said nothing of use, or read something wrong.
    """
    try:
        with _limited(seconds, patience):
            case.run()
    except UserError as error:
        message = str(error)
        if not any(name in message for name in case.names):
            raise ViolationError(f"the message names none of {case.names}: {message[:500]}") from error
        if len(message) > MESSAGE:
            raise ViolationError(f"the message has {len(message)} characters: {message[:500]}") from error
        return "refused"
    except _TimeIsUp:
        raise ViolationError(f"it took more than {seconds} seconds of computing, or {patience} on the clock") from None
    except ViolationError:
        raise
    except Exception as error:
        raise ViolationError(f"{type(error).__name__}: {str(error)[:500]}") from error
    return "returned"


@contextmanager
def _limited(seconds: float, patience: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUp

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, patience)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


class Place:
    """A folder for one input after the other, inside one in which nothing else may appear."""

    def __init__(self, root: Path) -> None:
        self.root, self.inner, self.working = root, root / "input", root / "working"
        self.working.mkdir(parents=True)
        os.chdir(self.working)

    def try_one(self, make: Make, seed: str) -> tuple[str, str]:
        """The kind of the input that a seed makes, and what `attempt` says.

        Raises:
            ViolationError: as there, or something was written outside of the input's own folder; its text begins with the kind.
        """
        self.inner.mkdir()
        kind = "making it"
        try:
            case = make(random.Random(seed), self.inner)
            kind = case.kind
            outcome = attempt(case)
            found = sorted(os.listdir(self.root)) + os.listdir(self.working)
            if found != ["input", "working"]:
                raise ViolationError(f"written outside: {found}")
            return kind, outcome
        except ViolationError as error:
            raise ViolationError(f"{kind}: {error}") from error
        except OSError as error:
            raise ViolationError(f"{kind}: the input itself could not be made: {error}") from error
        finally:
            _remove(self.inner)


def _remove(folder: Path) -> None:
    """Like `shutil.rmtree`, which does not go thousands of folders deep."""
    for here, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(here, name))
        for name in folders:
            path = os.path.join(here, name)
            (os.unlink if os.path.islink(path) else os.rmdir)(path)
    os.rmdir(folder)


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


PIECES = [
    "", " ", "a", "text", "label", "word ", '"', '""', '"""', "'", ",", ";", "|", "\t", "\n", "\r", "\r\n", "\n\n", "\0",
    "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1f", "\x7f", "\u200b", "\u202e", "é", "e\u0301", "ß", "İ",
    "漢字", "ｆｕｌｌ", "🎉", "👩‍👩‍👧", "\U0010ffff", "\ufffe", "\ufffd", "\xa0", "=1", "NA", "null", "nan", "None", "true", "1",
    "01", "1e999", "-0.0", "\\", "\\n", "\\ud83d", "\\u0000", "{", "}", "[", "]", "%s", "{0}", "\x1b[31m", "<b>", "#", "&a",
    "*a", "!!x", "---", ":", "- ", "x" * 300, "~", "../", "$HOME",
]  # fmt: skip


def odd_text(rng: random.Random, most: int = 5) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(0, most)))


def odd_names(rng: random.Random, count: int) -> list[str]:
    """Different names of columns; the first does not begin with a byte order mark, which would be the file's."""
    names = dict.fromkeys([rng.choice(["text", "label", "a", ""]) for _ in range(2)])
    while len(names) < count:
        names[odd_text(rng, 2)] = None
    found = [name for name in names if not name.startswith("\ufeff")]
    return found[:count] or ["text"]


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Some bytes lost, doubled, changed, or put in."""
    data = bytearray(content)
    special = [
        b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc0\x80", b'"', b"\n", b"\r", b"\r\n", b",", b"\\",
        b"{", b"[" * 50,
    ]  # fmt: skip
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        length = rng.choice([1, 1, 2, 4, 16, 64])
        what = rng.randrange(6)
        if what == 0:
            del data[at : at + length]
        elif what == 1:
            data[at:at] = data[at : at + length] * rng.choice([1, 2, 20])
        elif what == 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 4:
            data[at:at] = rng.choice(special)
        elif what == 5 and rng.random() < 0.3:
            del data[at:]
    return bytes(data)

"""Races for one output: processes that write it, processes that are killed, and links and pipes in their way."""

import io
import os
import random
import select
import shutil
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.output_journal import ChunkPredictions, OutputFile
from nlp_transfer.inference.writers import ENDINGS, Writer
from nlp_transfer.security.file_locks import lock_target
from nlp_transfer.utils import atomic_files
from nlp_transfer.utils.errors import UserError

PROCESSES, EACH = 4, 6  # writers of a round, and the writes of each
ROWS = 3
PATIENCE = 60.0  # seconds for a round
SECRET = b"a file of somebody's\n"
TEXTS = [f"text {i}" for i in range(ROWS)]


def columns(mark: str) -> dict[str, list[str]]:
    """What the writer `mark` writes; the length differs from writer to writer."""
    return {"text": TEXTS, "prediction": [mark * (1 + sum(map(ord, mark)) % 7)] * ROWS}


@cache
def content(mark: str, ending: str) -> bytes:
    """The complete file of the writer `mark`."""
    file = io.BytesIO()
    with Writer(file, ending) as writer:
        writer.write(columns(mark))
    return file.getvalue()


def predict(path: Path, mark: str, overwrite: bool) -> None:
    """The steps of a command that predicts, with predictions that are known."""
    batch = Batch({"text": TEXTS}, 1, ROWS)
    with OutputFile(path, overwrite) as target:
        target.begin({"model": mark})
        answer = target.find(batch) or ChunkPredictions({"prediction": columns(mark)["prediction"]})
        with Writer(target.open(), path.suffix) as writer:
            target.add(batch, answer)
            writer.write(columns(mark))
        target.finish()


def write_bytes(path: Path, mark: str, overwrite: bool) -> None:
    atomic_files.write_bytes(path, content(mark, path.suffix), overwrite)


def write_in_steps(path: Path, mark: str, overwrite: bool) -> None:
    with atomic_files.replacing(path, overwrite) as file:
        for byte in content(mark, path.suffix):
            file.write(bytes([byte]))
            file.flush()


def write_folder(path: Path, mark: str, overwrite: bool) -> None:
    with atomic_files.replacing_folder(path) as part:
        for name in ("first", "second"):
            (part / name).write_bytes(content(mark, ".txt"))


WRITERS: list[Callable[[Path, str, bool], None]] = [predict, write_bytes, write_in_steps]


class Race:
    """Rounds in a folder, one after the other; counts what happened and lists what must not."""

    def __init__(self, root: Path) -> None:
        self.root, self.victim = root, root / "victim"
        self.victim.write_bytes(SECRET)
        self.writes = 0
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def round(self, rng: random.Random) -> None:
        """Four processes write one output; what they leave is checked, and a last writer tidies up."""
        folder = self.root / "round"
        folder.mkdir()
        ending, overwrite = rng.choice([*ENDINGS, "folder"]), rng.random() < 0.6
        path = folder / ("out" if ending == "folder" else f"out{ending}")
        overwrite |= ending == "folder"
        seeds = [rng.random() for _ in range(PROCESSES)]
        read, write = os.pipe()
        children = [self._fork(read, write, path, f"{'abcd'[i]}", seed, overwrite) for i, seed in enumerate(seeds)]
        os.close(write)
        planted = self._disturb(rng, path, children)
        said = self._listen(read, children)
        for child in children:
            os.waitpid(child, 0)
        try:
            self._check(path, said, overwrite, planted)
        finally:
            shutil.rmtree(folder)

    def _fork(self, read: int, write: int, path: Path, name: str, seed: float, overwrite: bool) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            os.close(read)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            _write_some(write, path, name, random.Random(seed), overwrite)
            status = 0
        finally:
            os._exit(status)

    def _disturb(self, rng: random.Random, path: Path, children: list[int]) -> dict[Path, int]:
        """Kill some of the writers and plant things in their way; returns what was planted, by its inode."""
        planted: dict[Path, int] = {}
        for _ in range(rng.randint(1, 6)):
            time.sleep(rng.random() * 0.006)
            if rng.random() < 0.5:
                os.kill(rng.choice(children), signal.SIGKILL)
                self.counts["killed"] += 1
                continue
            names = [f".{path.name}.lock", f".{path.name}.partial", f".part-{path.name}", f"{path.name}.tmp", f".{path.name}"]
            place = path.with_name(rng.choice(names))
            with suppress(FileExistsError):
                (self.root / "ready").write_bytes(SECRET)
                plant: dict[str, Callable[[Path], None]] = {
                    "link": lambda path: path.symlink_to(self.victim), "pipe": os.mkfifo,
                    "dangling": lambda path: path.symlink_to(self.root / "nowhere"),
                    "hard link": lambda path: path.hardlink_to(self.victim),
                    "file": lambda path: path.hardlink_to(self.root / "ready"),  # complete when it appears
                }  # fmt: skip
                kind = rng.choice(list(plant))
                plant[kind](place)
                (self.root / "ready").unlink()
                planted[place] = place.lstat().st_ino
                self.counts[f"planted: {kind}"] += 1
        return planted

    def _listen(self, read: int, children: list[int]) -> dict[str, str]:
        """What the writers say, by their marks; those that say nothing for too long are killed."""
        heard, until = b"", time.monotonic() + PATIENCE
        while select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
            if not (more := os.read(read, 2**16)):
                break
            heard += more
        else:
            self.violations.append("a writer did not end")
            for child in children:
                os.kill(child, signal.SIGKILL)
        os.close(read)
        said: dict[str, str] = {}
        for line in heard.decode().splitlines():
            mark, _, outcome = line.partition(" ")
            said[mark] = outcome
        self.writes += len(said)
        self.counts.update(outcome.partition(":")[0] for outcome in said.values())
        return said

    def _check(self, path: Path, said: dict[str, str], overwrite: bool, planted: dict[Path, int]) -> None:
        def wrong(text: str) -> None:
            self.violations.append(f"{path.name}, overwrite {overwrite}, {said}: {text}")

        for mark, outcome in said.items():
            if outcome.startswith("error"):
                wrong(f"{mark} ended with an error")
        for place, inode in planted.items():
            if not os.path.lexists(place) or place.lstat().st_ino != inode:
                wrong(f"{place.name} was planted and is not as it was")
            else:
                if stat.S_ISREG(place.lstat().st_mode) and place.read_bytes() != SECRET:
                    wrong(f"{place.name} was changed")
                place.unlink()
        if not path.suffix:  # after a kill the next process that takes the lock restores a folder that was moved away
            lock_target(path).release()
        done = {mark for mark, outcome in said.items() if outcome == "written"}
        possible = done | {mark for mark, outcome in said.items() if outcome == "begun"}
        found = _written(path, list(said))
        if found is not None and found not in possible:
            wrong(f"the output is that of {found}")
        if done and (found is None or (not overwrite and done != {found})):
            wrong(f"{done} have ended with success, and the output is that of {found}")
        if self.victim.read_bytes() != SECRET or (self.root / "nowhere").exists():
            wrong("a victim was changed")
        last = write_folder if not path.suffix else predict
        try:
            with redirect_stderr(io.StringIO()):
                last(path, "z", True)
        except Exception as error:
            wrong(f"the last writer failed: {error!r}")
        if _written(path, ["z"]) != "z" or os.listdir(path.parent) != [path.name]:
            wrong(f"in the end there are {sorted(os.listdir(path.parent))}")


def _write_some(report: int, path: Path, name: str, rng: random.Random, overwrite: bool) -> None:
    put = atomic_files._put

    def checked(part: Path, target: Path, *more: bool) -> None:
        put(part, target, *more)
        if target.read_bytes() != content(mark, path.suffix):  # the lock is held, so that nobody else may have written it
            raise AssertionError("the file was not the writer's when it was renamed")

    atomic_files._put = checked
    for i in range(EACH):
        mark = f"{name}{i}"
        write = rng.choice(WRITERS) if path.suffix else write_folder
        os.write(report, f"{mark} begun\n".encode())
        try:
            write(path, mark, overwrite)
            outcome = "written"
        except UserError:
            outcome = "refused"
        except FileExistsError:
            outcome = "refused" if not overwrite else "error: FileExistsError"
        except BaseException as error:
            outcome = f"error: {error!r}"
        os.write(report, f"{mark} {outcome}\n".encode())


def _written(path: Path, marks: list[str]) -> str | None:
    """Whose complete content the output is; None: there is none.

    `an unknown writer` where it is nobody's.
    """
    if not os.path.lexists(path):
        return None
    if path.suffix:
        return next((mark for mark in marks if path.read_bytes() == content(mark, path.suffix)), "an unknown writer")
    files = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    names = ("first", "second")
    return next((mark for mark in marks if files == dict.fromkeys(names, content(mark, ".txt"))), "an unknown writer")

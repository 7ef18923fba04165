"""The runs of a comparison in its folder: which are done, which are not, and one at a time to a process that does them."""

import contextlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from nlp_transfer.data.sources.wheels import sha256_of
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.saved_models.layout import RUN_FILES
from nlp_transfer.security.child_processes import start_program
from nlp_transfer.security.file_locks import lock_now
from nlp_transfer.settings.schema import Document
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

OUTCOME, ANSWERS, LOG = "outcome.json", "answers.npz", "log.txt"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with a result, as not possible (the reason is for the user to read), or with a crash."""

    folder: Path
    result: dict[str, Any] | None = None
    model_bytes: int = 0
    stored_bytes: int = 0
    impossible: str = ""
    failed: str = ""

    def figure(self, split: str, metric: str) -> float | None:
        metrics: dict[str, dict[str, float]] = (self.result or {}).get("metrics", {})
        return metrics.get(split, {}).get(metric)

    def scored(self, split: str) -> ScoredSplit:
        """Answers and references of a split, as they were kept."""
        found: dict[str, dict[str, np.ndarray]] = {"answer": {}, "reference": {}}
        with np.load(self.folder / ANSWERS) as arrays:
            for path in arrays.files:
                owner, kind, name = path.split("/", 2)
                if owner == split:
                    found[kind][name] = arrays[path]
        return ScoredSplit(found["answer"], found["reference"])


_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class _Done:
    __pydantic_config__ = _STRICT

    done: Literal[True]
    model_bytes: NonNegativeInt
    stored_bytes: NonNegativeInt
    hashes: dict[str, str]


@dataclass(frozen=True)
class _Impossible:
    __pydantic_config__ = _STRICT

    impossible: str


@dataclass(frozen=True)
class _Failed:
    __pydantic_config__ = _STRICT

    failed: str


@dataclass(frozen=True)
class _Result:
    """What a comparison reads of `result.json`."""

    task: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    train: dict[str, float | None]


def read_outcome(folder: Path) -> Outcome | None:
    """How the run in a folder ended, or None: it has not been begun, not been finished, or its records cannot be used."""
    path = folder / OUTCOME
    try:
        ended = TypeAdapter(_Done | _Impossible | _Failed).validate_json(path.read_bytes(), strict=True)
        if not isinstance(ended, _Done):
            return Outcome(folder, **asdict(ended))
        for path in (folder / ANSWERS, folder / "result.json"):
            if ended.hashes.get(path.name) != sha256_of(path):
                raise OSError("it is not the file that the run wrote")
        content = path.read_bytes()
        TypeAdapter(_Result).validate_json(content, strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[-1]["msg"] if isinstance(error, ValidationError) else error
        say(f"warning: {path}: cannot be used ({reason}); the run is done again")
        return None
    return Outcome(folder, json.loads(content), ended.model_bytes, ended.stored_bytes)


class Server:
    """The process that forks for each run; see `nlp_transfer.experiments.run_server`."""

    def __init__(self, verbose: bool = False, code: Sequence[str] = ()) -> None:
        """`code`: files with classes of the user's own, which that process loads."""
        self.verbose, self.code = verbose, list(code)
        self.process: Any = None  # a `subprocess.Popen`
        self.errors: Any = None

    def run(self, document: Document, rate: float, keep_models: bool, notes: dict[str, Any]) -> Outcome:
        """One run to its end. What an earlier attempt left unfinished is gone on with. `notes`: JSON for its folder, by name."""
        folder = Path(document["output_dir"])
        if (folder / "result.json").exists():  # finished, but killed before its answers were written: they are lost
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME).unlink(missing_ok=True)
        for name, note in notes.items():
            write_json(folder / name, note)
        code = self._ask(pickle.dumps({"document": document, "rate": rate, "keep_models": keep_models}), folder / LOG)
        outcome = read_outcome(folder)
        if outcome is None:  # it could not even say why: killed, for memory most often
            reason = f"the process was ended by signal {-code}" if code < 0 else f"the process ended with status {code}"
            outcome = Outcome(folder, failed=reason + (" (often: no memory left)" if code == -9 else ""))
            write_json(folder / OUTCOME, {"failed": outcome.failed})
        return outcome

    def _ask(self, job: bytes, log: Path) -> int:
        process = self._started()
        shown = log.stat().st_size if log.exists() else 0
        with contextlib.suppress(BrokenPipeError):  # then there is no reply either
            process.stdin.write(len(job).to_bytes(8, "big") + job)
            process.stdin.flush()
        replies: SimpleQueue[bytes] = SimpleQueue()
        # A thread, since not every system can wait for a pipe with a time limit.
        read = process.stdout.readline
        threading.Thread(target=lambda: replies.put(read()), daemon=True).start()
        while (reply := _next(replies)) is None:
            shown = self._show(log, shown)
        self._show(log, shown)
        if not reply:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise RuntimeError(f"the process for the runs has ended: {lines[-1] if lines else 'without a word'}")
        return int(reply)

    def _show(self, log: Path, shown: int) -> int:
        if not self.verbose or not log.exists():
            return shown
        with log.open("rb") as file:
            file.seek(shown)
            text = file.read()
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()
        return shown + len(text)

    def _started(self) -> Any:
        if self.process is not None and not hasattr(os, "fork"):
            self.close()  # it has done its job
        if self.process is None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # no terminal, so that nobody colours what goes into a log
            self.process = start_program("from nlp_transfer.experiments.run_server import serve; serve()", self.code, self.errors)
        return self.process

    def close(self) -> None:
        """Ends the process, and a run that is still under way."""
        if self.process is not None:
            for stream in (self.process.stdin, self.process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            self.process.wait()
            self.errors.close()
            self.process = None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _next(replies: "SimpleQueue[bytes]") -> bytes | None:
    try:
        return replies.get(timeout=0.2)
    except Empty:
        return None


@contextlib.contextmanager
def claimed(folder: Path) -> Any:
    """A comparison's folder, for one process alone.

    Raises:
        UserError: another one works in it, it is a run's, or it cannot be written.
    """
    try:
        if clash := [name for name in RUN_FILES if (folder / name).exists()]:
            raise UserError(f"--output: {folder} already holds {', '.join(clash)} of a run; allowed: another folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_now(
            folder / ".lock",
            f"--output: another comparison is being run in {folder}; wait for it, or give another folder",
            "nothing keeps a second comparison out of it",
        )
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}; allowed: another folder") from None
    with lock:
        yield

"""The runs of an experiment: reading their outcomes, and executing them in a server process."""

import contextlib
import json
import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter, ValidationError

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.splits import Splits
from nlp_transfer.evaluation.resampling import ScoredSplit
from nlp_transfer.saved_models.layout import RUN_FILES
from nlp_transfer.security.child_processes import start_program
from nlp_transfer.security.file_locks import lock_now
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.utils.atomic_files import write_json
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

OUTCOME, PREDICTIONS_FILE, LOG = "outcome.json", "predictions.npz", "log.txt"
SERVER = """
from nlp_transfer.utils.environment import importing
with importing():  # forks then neither collect nor copy the imported objects
    from nlp_transfer.experiments.run_server import serve
serve()
"""


class Pruned(Exception):  # noqa: N818  # not an error
    """Ends the run of a search early, with the reason. A callback raises it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run: a result, the reason why it is impossible with these settings, or the error that ended it.

    Attributes:
        folder: folder of the run.
        result: content of `result.json`.
        model_bytes: size of the model.
        stored_bytes: size of the adapter, or of the model if there is no adapter.
        impossible: why the run is impossible with these settings.
        failed: last line of the error that ended the run.
        pruned: why the run of a search was ended early.
    """

    folder: Path
    result: dict[str, Any] | None = None
    model_bytes: int = 0
    stored_bytes: int = 0
    impossible: str = ""
    failed: str = ""
    pruned: str = ""

    def metric(self, split: str, name: str) -> float | None:
        """Return a metric of a split, or None if it is missing or undefined."""
        metrics: dict[str, dict[str, float]] = (self.result or {}).get("metrics", {})
        return metrics.get(split, {}).get(name)

    def scored(self, split: str) -> ScoredSplit:
        """Return the saved predictions and references of a split."""
        columns: dict[str, dict[str, np.ndarray]] = {"answer": {}, "reference": {}}
        with np.load(self.folder / PREDICTIONS_FILE) as arrays:
            for path in arrays.files:
                of_split, kind, name = path.split("/", 2)
                if of_split == split:
                    array = arrays[path]
                    is_json = array.dtype.kind == "U"
                    columns[kind][name] = np.fromiter(map(json.loads, array.tolist()), object) if is_json else array
        return ScoredSplit(columns["answer"], columns["reference"])


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
class _Pruned:
    __pydantic_config__ = _STRICT

    pruned: str


@dataclass(frozen=True)
class _Result:
    """The fields of `result.json` that an experiment reads."""

    task: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    train: dict[str, float | None]


def read_outcome(folder: Path) -> Outcome | None:
    """Read the outcome of a run. Return None if the run has not ended or its files are damaged."""
    path = folder / OUTCOME
    try:
        record = TypeAdapter(_Done | _Impossible | _Failed | _Pruned).validate_json(path.read_bytes(), strict=True)
        if not isinstance(record, _Done):
            return Outcome(folder, **asdict(record))
        for path in (folder / PREDICTIONS_FILE, folder / "result.json"):
            if record.hashes.get(path.name) != sha256_of(path):
                raise OSError("it is not the file that the run wrote")
        content = path.read_bytes()
        TypeAdapter(_Result).validate_json(content, strict=True)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = error.errors()[-1]["msg"] if isinstance(error, ValidationError) else error
        say(f"warning: {path}: cannot be used ({reason}); the run is repeated")
        return None
    return Outcome(folder, json.loads(content), record.model_bytes, record.stored_bytes)


class RunServer:
    """The process that forks for each run; see `nlp_transfer.experiments.run_server`.

    Args:
        verbose: whether to copy the log of each run to standard error.
        code: Python files with the user's classes, imported by the process.
    """

    def __init__(self, verbose: bool = False, code: Sequence[str] = ()) -> None:
        self.verbose, self.code = verbose, list(code)
        self.process: Any = None  # a `subprocess.Popen`
        self.errors: Any = None

    def read(self, document: Document, seed: int, needs_validation: bool) -> Splits:
        """Read and check the data of the runs, once for all of them; return the splits with the origin of their rows only.

        Raises:
            UserError: the data cannot be used.
        """
        reply = self._request({"read": document, "seed": seed, "needs_validation": needs_validation})
        self.errors.seek(0)
        say(*self.errors.read().decode(errors="replace").splitlines())
        if "error" in reply:
            raise UserError(reply["error"])
        nothing = np.zeros(0, np.int64)
        rows = {name: Rows({}, files, nothing, nothing, *origin) for name, (files, *origin) in reply["origins"].items()}
        return Splits(rows, reply["notes"], validation_share=reply["validation_share"])

    def run(
        self, document: Document, rate: float, keep_models: bool, notes: dict[str, Any], callbacks: Sequence[Any] = (),
        with_test: bool = True,
    ) -> Outcome:  # fmt: skip
        """Execute a run, or resume it if it is unfinished.

        Args:
            document: settings of the run.
            rate: factor by which the strategy's default learning rate is multiplied.
            keep_models: whether to keep the model.
            notes: JSON documents to write into the run's folder, by file name.
            callbacks: callbacks of the run, which can be pickled.
            with_test: whether to score the test split.
        """
        folder = Path(document["output_dir"])
        if (folder / "result.json").exists():  # killed after the run had finished, before its predictions were saved
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME).unlink(missing_ok=True)
        for name, note in notes.items():
            write_json(folder / name, note)
        job = {
            "document": document, "rate": rate, "keep_models": keep_models, "callbacks": list(callbacks), "with_test": with_test,
        }  # fmt: skip
        status = self._request(job, folder / LOG)
        outcome = read_outcome(folder)
        if outcome is None:  # killed
            reason = f"the process was ended by signal {-status}" if status < 0 else f"the process ended with status {status}"
            outcome = Outcome(folder, failed=reason + (" (often: no memory left)" if status == -9 else ""))
            write_json(folder / OUTCOME, {"failed": outcome.failed})
        return outcome

    def _request(self, job: dict[str, Any], log: Path | None = None) -> Any:
        """Send a job to the server, show its log until it ends, and return its reply."""
        process = self._started()
        shown = log.stat().st_size if log is not None and log.exists() else 0
        with contextlib.suppress(BrokenPipeError):  # the missing reply is reported below
            process.stdin.write(pickle.dumps(job))
            process.stdin.flush()
        replies: SimpleQueue[bytes] = SimpleQueue()
        # A thread, because not every system can read a pipe with a timeout.
        threading.Thread(target=lambda: replies.put(process.stdout.readline()), daemon=True).start()
        reply = None
        while reply is None:
            with contextlib.suppress(Empty):
                reply = replies.get(timeout=0.2)
            shown = self._show(log, shown)
        if not reply:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
            raise RuntimeError(f"the process for the runs ended with status {self.close()}: {lines[-1]}")
        return json.loads(reply)

    def _show(self, log: Path | None, shown: int) -> int:
        if log is None or not self.verbose or not log.exists():
            return shown
        with log.open("rb") as file:
            file.seek(shown)
            text = file.read()
        sys.stderr.write(text.decode(errors="replace"))
        sys.stderr.flush()
        return shown + len(text)

    def _started(self) -> Any:
        if self.process is not None and not hasattr(os, "fork"):
            self.close()  # without fork, a server executes one job
        if self.process is None:
            self.errors = tempfile.TemporaryFile()  # noqa: SIM115  # not a terminal, so logs have no colors
            self.process = start_program(SERVER, self.code, self.errors)
        return self.process

    def close(self) -> int | None:
        """End the process and its run, and return its exit status. Return None if there is no process."""
        if self.process is None:
            return None
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        status: int = self.process.wait()
        self.errors.close()
        self.process = None
        return status

    def __enter__(self) -> "RunServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder of an experiment, and lock it within the context.

    Raises:
        UserError: another experiment uses the folder, it belongs to a run, or it cannot be written.
    """
    try:
        if clash := [name for name in RUN_FILES if (folder / name).exists()]:
            raise UserError(f"--output: {folder} already holds {', '.join(clash)} of a run; allowed: another folder")
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_now(
            folder / ".lock",
            f"--output: another experiment is running in {folder}; wait for it, or choose another folder",
            "a second experiment in it is not prevented",
        )
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}; allowed: another folder") from None
    with lock:
        yield

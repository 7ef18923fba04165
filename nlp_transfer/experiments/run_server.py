"""A server process that forks for each run of an experiment.

The server imports the toolkit and reads the data once for all runs. Each run has a separate process, so that its peak memory can
be measured and a crash does not end the other runs. The server reads each job as a pickle from standard input and writes its
reply as a line of JSON to standard output. If standard input is closed because the command has ended, the current run is killed.

On systems without fork, a server executes one job and exits.
"""

import json
import os
import pickle
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401  # these two take a second: imported here, and not again in each run
import sklearn.metrics  # noqa: F401

from nlp_transfer.data.splits import keep_rows, read_splits
from nlp_transfer.experiments.runs import LOG, OUTCOME, PREDICTIONS_FILE, Pruned
from nlp_transfer.fine_tune import FineTuned, fine_tune
from nlp_transfer.run.resolve import resolve
from nlp_transfer.security.child_processes import end_with_input, end_with_parent, run_forked
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.extensions import load_code
from nlp_transfer.strategies import Strategy, strategy_from
from nlp_transfer.training.callbacks import Callback
from nlp_transfer.utils.atomic_files import open_for_append, replacing, write_json
from nlp_transfer.utils.checksums import sha256_of
from nlp_transfer.utils.environment import finish_output
from nlp_transfer.utils.errors import UserError

MAX_SCORE_BYTES = 64 * 2**20  # bytes per split; larger scores are not saved, so metrics that need them cannot be compared


def serve() -> None:
    """Execute jobs until standard input is closed. The arguments of the process are Python files with the user's classes."""
    guard_output()
    load_code(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the run and the command; the command ends this process
    replies = os.dup(1)
    os.dup2(2, 1)
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply: Any
        if "read" in job:
            reply = _read(**job)
        elif hasattr(os, "fork"):
            reply = run_forked(_work, replies, job)
        else:
            end_with_input()
            reply = _run_job(job)
        os.write(replies, f"{json.dumps(reply)}\n".encode())
        if not hasattr(os, "fork"):
            return


def _read(read: Document, seed: int, needs_validation: bool) -> dict[str, Any]:
    """Read the data of a run for all runs that are forked later; describe the splits without their rows, or the error."""
    with interruptible():
        try:
            run = resolve(read, shared=True)
            keep_rows(run.config.data, run.task, run.config.training)
            splits, _ = read_splits(run.config.data, run.task, run.config.training, seed, needs_validation)
        except UserError as error:
            return {"error": str(error)}
    origins = {name: [rows.files[:1], rows.hashes, rows.revision] for name, rows in splits.rows.items()}
    return {"notes": splits.notes, "validation_share": splits.validation_share, "origins": origins}


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end this process inside the context."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(replies: int, job: dict[str, Any]) -> None:
    """Execute a job in the forked process, and exit."""
    os.close(replies)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os._exit(_run_job(job))


def _run_job(job: dict[str, Any]) -> int:
    """Execute a run and return its exit status: 0 finished, 1 failed, 2 impossible, 130 Ctrl-C. Save the reason in its folder."""
    folder = Path(job["document"]["output_dir"])
    with open_for_append(folder / LOG) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        run = _run(job["document"], job["rate"], job["callbacks"], job["with_test"])
        keep_results(run, job["keep_models"])
        return 0
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        write_json(folder / OUTCOME, {"impossible": str(error)})
        return 2
    except Pruned as reason:
        print(reason, file=sys.stderr)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        write_json(folder / OUTCOME, {"pruned": str(reason)})
        return 0
    except BaseException as error:
        traceback.print_exc()
        write_json(folder / OUTCOME, {"failed": traceback.format_exception_only(error)[-1].strip()})
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        finish_output()


def _run(document: dict[str, Any], rate: float, callbacks: Sequence[Callback], with_test: bool) -> FineTuned:
    options: Any = {"callbacks": callbacks, "with_report": False, "with_test": with_test}
    if rate != 1:
        options["strategy"] = with_rate(strategy_from(document["strategy"]), rate)
    return fine_tune(document, **options)


def with_rate(strategy: Strategy, factor: float) -> Strategy:
    """Return a copy of the strategy with its default learning rate multiplied by `factor`."""
    kind, traits = type(strategy), strategy.traits
    scaled_traits = replace(traits, learning_rate=lambda model: factor * traits.learning_rate(model))
    changed = type(kind.__name__, (kind,), {"traits": property(lambda _: scaled_traits), "__module__": kind.__module__})
    scaled: Strategy = changed(**{name: getattr(strategy, name) for name in kind.model_fields})
    return scaled


def keep_results(run: FineTuned, keep_models: bool) -> None:
    """Save the predictions and the size of the model, and delete the model unless `keep_models`. Write `outcome.json` last."""
    folder = run.output_dir
    arrays: dict[str, np.ndarray] = {}
    for split, predictions in run.predictions.items():
        for kind, columns in (("answer", predictions), ("reference", run.references[split])):
            for name, array in columns.items():
                if name != "scores" or array.nbytes <= MAX_SCORE_BYTES:
                    is_json = array.dtype.kind in "OU"  # texts, or other JSON values
                    arrays[f"{split}/{kind}/{name}"] = np.array([json.dumps(cell) for cell in array]) if is_json else array
    with replacing(folder / PREDICTIONS_FILE) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    model = size_of(folder / "model")
    adapter = folder / "adapter"
    stored = size_of(adapter) if adapter.is_dir() else model
    if not keep_models:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.rmtree(adapter, ignore_errors=True)
    hashes = {name: sha256_of(folder / name) for name in (PREDICTIONS_FILE, "result.json")}
    write_json(folder / OUTCOME, {"done": True, "model_bytes": model, "stored_bytes": stored, "hashes": hashes})


def size_of(folder: Path) -> int:
    """Return the size of a model folder in bytes, without the model card and the plain copy of the encoder."""
    encoder = folder / "encoder"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md" and encoder not in path.parents]
    return sum(path.stat().st_size for path in files)

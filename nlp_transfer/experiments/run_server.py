"""Each run in a process of its own: a process that calls `serve` imports the toolkit once and forks for each run.

So a run costs no import, its peak memory is its own, and its crash ends no other. A job comes in on standard input, eight bytes
of length before it; its exit status goes out on standard output, a line each. When standard input ends, as it does when the
command that started this is gone, the run under way is ended as well.

Where the system cannot fork, a process does one job and ends; the next job gets another one.
"""

import os
import pickle
import select
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from nlp_transfer.data.sources.wheels import sha256_of
from nlp_transfer.experiments.runs import ANSWERS, LOG, OUTCOME
from nlp_transfer.fine_tune import FineTuned, fine_tune
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.settings.extensions import load_code
from nlp_transfer.strategies import Strategy, strategy_from
from nlp_transfer.utils.atomic_files import open_for_append, replacing, write_json
from nlp_transfer.utils.environment import finish_output
from nlp_transfer.utils.errors import UserError

MOST_SCORES = 64 * 2**20  # bytes of scores kept of a split: above that figures that need them are not compared


def serve() -> None:
    """Runs jobs until standard input ends."""
    guard_output()
    load_code(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the run by itself, and the command, which ends this process
    replies = os.dup(1)
    os.dup2(2, 1)
    while len(head := _read(8)) == 8:
        job = _read(int.from_bytes(head, "big"))
        if not hasattr(os, "fork"):
            threading.Thread(target=_end_with_input, daemon=True).start()
            os.write(replies, f"{_work(job)}\n".encode())
            return
        ended, mark = os.pipe()  # the run holds the other end, so that its end is seen in `select`
        child = os.fork()
        if child == 0:
            os.close(ended)
            os.close(replies)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(_work(job))
        os.close(mark)
        if 0 in select.select([0, ended], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(ended)
        os.write(replies, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _end_with_input() -> None:
    """End this process when the command that started it is gone."""
    _read(1)
    os._exit(1)


def _read(size: int) -> bytes:
    """`size` bytes of standard input, fewer where it ends; unbuffered, so that `select` sees all there is."""
    parts: list[bytes] = []
    while size > 0 and (part := os.read(0, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _work(body: bytes) -> int:
    """One run, in the forked process: 0 done, 2 the run is not possible, 1 it failed; the reason is in its folder."""
    job: dict[str, Any] = pickle.loads(body)
    folder = Path(job["document"]["output_dir"])
    with open_for_append(folder / LOG) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        run = _run(job["document"], job["rate"])
        keep_what_is_needed(run, job["keep_models"])
        return 0
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        write_json(folder / OUTCOME, {"impossible": str(error)})
        return 2
    except BaseException as error:
        traceback.print_exc()
        write_json(folder / OUTCOME, {"failed": traceback.format_exception_only(error)[-1].strip()})
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        finish_output()


def _run(document: dict[str, Any], rate: float) -> FineTuned:
    if rate == 1:
        return fine_tune(document)
    return fine_tune(document, strategy=with_rate(strategy_from(document["strategy"]), rate))


def with_rate(strategy: Strategy, factor: float) -> Strategy:
    """The same strategy with another rate for `learning_rate: auto`."""
    kind = type(strategy)

    def learning_rate(self: Any, *arguments: Any) -> float:
        return factor * kind.learning_rate(self, *arguments)

    changed = type(kind.__name__, (kind,), {"learning_rate": learning_rate, "__module__": kind.__module__})
    found: Strategy = changed(**{name: getattr(strategy, name) for name in kind.model_fields})
    return found


def keep_what_is_needed(run: FineTuned, keep_models: bool) -> None:
    """The answers, and how much a model takes; then the models go, unless they are to be kept. `outcome.json` comes last."""
    folder = run.output_dir
    arrays: dict[str, np.ndarray] = {}
    for split, answers in run.answers.items():
        for kind, found in (("answer", answers), ("reference", run.references[split])):
            for name, array in found.items():
                if name != "scores" or array.nbytes <= MOST_SCORES:
                    text = array.dtype == object
                    arrays[f"{split}/{kind}/{name}"] = np.array([str(cell) for cell in array]) if text else array
    with replacing(folder / ANSWERS) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    model = size_of(folder / "model")
    adapter = folder / "adapter"
    stored = size_of(adapter) if adapter.is_dir() else model
    if not keep_models:
        shutil.rmtree(folder / "model", ignore_errors=True)
        shutil.rmtree(adapter, ignore_errors=True)
    hashes = {name: sha256_of(folder / name) for name in (ANSWERS, "result.json")}
    write_json(folder / OUTCOME, {"done": True, "model_bytes": model, "stored_bytes": stored, "hashes": hashes})


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, the model card aside, and the encoder alone where the whole model holds it as well."""
    spare = folder / "encoder"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "README.md" and spare not in path.parents]
    return sum(path.stat().st_size for path in files)

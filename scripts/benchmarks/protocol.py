"""Protocol between benchmarks and workers: one line of JSON in each direction.

Needs only Python's standard library, so that workers can run in any environment. A worker is a script that reads its settings,
announces that it is ready, and then does one turn for each request:

    channel = Channel()
    settings = channel.settings
    ...
    channel.serve(lambda request: {"seconds": ...})

If the library has control (a training loop), the worker fetches requests itself: `channel.ready()` once, then `channel.next()`
and `channel.answer()` inside the loop.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
HERE = Path(__file__).parent
ROOT = HERE.parents[1]  # measures this checkout, not an installed version
NOT_HANDED_ON = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "TORCH_")


class Channel:
    """The worker's end of the protocol. Output of libraries goes to standard error; standard output is reserved."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.settings = json.loads(sys.stdin.readline())

    def ready(self, **facts: Any) -> None:
        """Announce that turns can begin."""
        self._write({"ready": True, "versions": versions(), **facts})

    def next(self) -> Answer:
        """Return the next request; exit if there is none."""
        line = sys.stdin.readline()
        if not line:
            sys.stderr.flush()
            os._exit(0)  # out of whatever loop this was called from, whatever that would still like to save
        request: Answer = json.loads(line)
        return request

    def answer(self, answer: Mapping[str, Any]) -> None:
        self._write({"peak_memory_bytes": peak_memory(), **answer})

    def serve(self, turn: Callable[[Answer], Mapping[str, Any]], **facts: Any) -> None:
        """Do turns until there are no more requests."""
        self.ready(**facts)
        while True:
            self.answer(turn(self.next()))

    def _write(self, value: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()


def peak_memory() -> int:
    """Return the peak memory of this process in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def versions() -> dict[str, str]:
    """Return the versions of the libraries loaded by this process."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in ("torch", "transformers", "setfit")}
    torch = sys.modules.get("torch")
    gpu = {"GPU": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}
    return {"python": sys.version.split()[0], **{name: str(version) for name, version in found.items() if version}, **gpu}


class WorkerError(RuntimeError):
    """A worker ended or sent something other than an answer."""


class Worker:
    """The parent's end of the protocol: one worker process, running until it is closed."""

    def __init__(
        self, name: str, script: str, settings: Mapping[str, Any], folder: Path, threads: int, python: str = sys.executable
    ) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / (safe(name) + ".log")
        # Process settings of one worker, or of the caller, must not reach another worker.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(NOT_HANDED_ON)}
        environment |= {
            "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "workers" / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                encoding="utf-8", env=environment, cwd=folder,
            )  # fmt: skip
        self._send({"name": name, "folder": str(folder / safe(name)), "threads": threads, **settings})
        self.facts = self._receive()

    def turn(self, **request: Any) -> Answer:
        """Request one turn and return the answer.

        Raises:
            WorkerError: there was none; the message contains the end of the log.
        """
        self._send(request)
        return self._receive()

    def close(self) -> None:
        """Let the process end, or kill it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._broken("ended") from None

    def _receive(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._broken("ended")
        try:
            answer: Answer = json.loads(line)
        except json.JSONDecodeError:
            raise self._broken(f"said {line[:200]!r}") from None
        return answer

    def _broken(self, how: str) -> WorkerError:
        self._process.kill()
        self.close()
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
        return WorkerError(f"{self.name}: the worker {how}; the end of {self.log}:\n{tail}")


def safe(name: str) -> str:
    """Convert a name to a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def take_turns(
    workers: Sequence[Worker], repeats: int, requests: Mapping[str, Any] | Callable[[Worker, int], Mapping[str, Any]]
) -> dict[str, list[Answer]]:
    """Run `repeats` rounds in which each worker has one turn; the first worker changes from round to round.

    Returns:
        Answers by worker name, in the order of rounds.
    """
    found: dict[str, list[Answer]] = {worker.name: [] for worker in workers}
    for i in range(repeats):
        shift = i % max(1, len(workers))
        for worker in itertools.chain(workers[shift:], workers[:shift]):
            request = requests(worker, i) if callable(requests) else requests
            answer = worker.turn(**request)
            found[worker.name].append(answer)
            shown = {
                key: value for key, value in answer.items() if isinstance(value, (int, float)) and key != "peak_memory_bytes"
            }
            text = ", ".join(f"{key} {value:.4g}" for key, value in shown.items())
            print(f"  round {i + 1}  {worker.name}: {text}", flush=True)
    return found


def training_seconds(times: Sequence[float], step: int, evaluated_after: Collection[int]) -> float:
    """Return the seconds up to the end of optimizer step `step` (counted from 1), given the end time of each step.

    Cycles with an evaluation, and the first one, which includes loading, count as the median of the others.
    """
    cycles = {i + 2: after - before for i, (before, after) in enumerate(itertools.pairwise(times))}
    plain = {number: cycle for number, cycle in cycles.items() if number - 1 not in evaluated_after}
    usual = statistics.median(plain.values())
    return usual + sum(plain.get(number, usual) for number in range(2, step + 1))


def medians(answers: Sequence[Answer], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)

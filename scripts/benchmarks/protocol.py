"""How the benchmarks talk to their workers: one line of JSON each way. Needs Python alone, so that a peer in any environment
can speak it.

A worker is a script. It reads its settings, gets ready, says so, and then does a turn whenever it is asked for one:

    channel = Channel()
    settings = channel.settings
    ...
    channel.serve(lambda request: {"seconds": ...})

A worker whose library holds the control (a training loop) asks for the next turn itself: `channel.ready()` once, then
`channel.next()` and `channel.answer()` from inside the loop.
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
ROOT = HERE.parents[1]  # what is measured is the checkout that this file belongs to, whatever is installed
NOT_HANDED_ON = ("LD_PRELOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_", "KMP_", "GOMP_", "MKL_", "ONEDNN_", "TORCH_")


class Channel:
    """The worker's end. Whatever libraries print goes to standard error: standard output belongs to the protocol."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.settings = json.loads(sys.stdin.readline())

    def ready(self, **facts: Any) -> None:
        """Says that turns can begin."""
        self._write({"ready": True, "versions": versions(), **facts})

    def next(self) -> Answer:
        """The next request; ends the process when there is none."""
        line = sys.stdin.readline()
        if not line:
            sys.stderr.flush()
            os._exit(0)  # out of whatever loop this was called from, whatever that would still like to save
        request: Answer = json.loads(line)
        return request

    def answer(self, answer: Mapping[str, Any]) -> None:
        self._write({"peak_memory_bytes": peak_memory(), **answer})

    def serve(self, turn: Callable[[Answer], Mapping[str, Any]], **facts: Any) -> None:
        """Does turns until there are none."""
        self.ready(**facts)
        while True:
            self.answer(turn(self.next()))

    def _write(self, value: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
        self._out.flush()


def peak_memory() -> int:
    """Most bytes of memory that this process has held at once."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def versions() -> dict[str, str]:
    """Of the libraries that this process has loaded."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in ("torch", "transformers", "setfit")}
    torch = sys.modules.get("torch")
    gpu = {"GPU": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}
    return {"python": sys.version.split()[0], **{name: str(version) for name, version in found.items() if version}, **gpu}


class WorkerError(RuntimeError):
    """A worker ended or said something else than an answer."""


class Worker:
    """The parent's end: a process of its own for one side of a comparison, alive until it is closed."""

    def __init__(
        self, name: str, script: str, settings: Mapping[str, Any], folder: Path, threads: int, python: str = sys.executable
    ) -> None:
        self.name, self.folder = name, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / (safe(name) + ".log")
        # One side's tuning of the process, or the caller's, must not reach another side.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(NOT_HANDED_ON)}
        environment |= {
            "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "sides" / script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                encoding="utf-8", env=environment, cwd=folder,
            )  # fmt: skip
        self._send({"name": name, "folder": str(folder / safe(name)), "threads": threads, **settings})
        self.facts = self._receive()

    def turn(self, **request: Any) -> Answer:
        """One turn, and what the worker says of it.

        Raises:
            WorkerError: it did not answer; the end of its log is in the message.
        """
        self._send(request)
        return self._receive()

    def close(self) -> None:
        """Lets the process end, or ends it."""
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
    """A name as that of a file."""
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def take_turns(
    workers: Sequence[Worker], repeats: int, requests: Mapping[str, Any] | Callable[[Worker, int], Mapping[str, Any]]
) -> dict[str, list[Answer]]:
    """`repeats` rounds in which every worker has one turn; each round begins with another one, so that none always follows the
    same. Answers by name, in the order of rounds."""
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
    """Seconds up to the end of optimiser step `step` (counted from 1), each of which ended at one of the `times`. A cycle that
    holds an evaluation, and the first one, which begins with loading, count as the median of the others."""
    cycles = {i + 2: after - before for i, (before, after) in enumerate(itertools.pairwise(times))}
    plain = {number: cycle for number, cycle in cycles.items() if number - 1 not in evaluated_after}
    usual = statistics.median(plain.values())
    return usual + sum(plain.get(number, usual) for number in range(2, step + 1))


def medians(answers: Sequence[Answer], key: str) -> float:
    return statistics.median(answer[key] for answer in answers)

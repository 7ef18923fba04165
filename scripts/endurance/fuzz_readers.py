"""Feed 100,000 hostile inputs to every reader of external data: each is read correctly or refused with a message.

    python -m scripts.endurance.fuzz_readers                       # all of them, about 15 minutes on one core
    python -m scripts.endurance.fuzz_readers --part files --inputs 5000 --seed 1
    python -m scripts.endurance.fuzz_readers --part files --only 4711   # one input again, with its traceback

Reading an input must return or raise a UserError that names the file or the setting, within 5 seconds of CPU time (120 seconds
of wall time), use at most 1 GB of memory, and write nothing outside of its folder (details in `tests/helpers/fuzz`). Inputs run
in worker processes that are replaced after some thousand inputs; a worker that dies or hangs is a violation too. Exit status 1 if
there is a violation.
"""

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RUST_BACKTRACE", "0")

SHARES = {
    "files": 0.3, "parquet": 0.2, "wheels": 0.05, "settings": 0.1, "hub": 0.1, "adapters": 0.15, "adapter_loads": 0.02,
    "tokenizers": 0.08,
}  # fmt: skip
CHUNK = 5000  # inputs a worker
SILENCE = 300.0  # seconds without a word from a worker, after which it is ended
MEMORY = 2**30  # bytes that a worker may grow by


@dataclass
class Tally:
    """Results of all workers."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "none")
    peak: int = 0
    done: int = 0

    def add(self, violation: str) -> None:
        self.violations.append(violation)
        print(f"VIOLATION {violation}", flush=True)


def memory() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(part: str, seed: str, first: int, last: int) -> None:
    """Run inputs in a worker process; print one line of JSON for each."""
    from importlib import import_module

    from tests.helpers.fuzz.cases import Place, ViolationError

    make = import_module(f"tests.helpers.fuzz.{part}").make
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        place = Place(Path(folder) / "place")
        before = None
        for i in range(first, last):
            started = time.monotonic()
            try:
                kind, outcome = place.try_one(make, f"{part}:{seed}:{i}")
            except ViolationError as error:
                kind, outcome = "violation", str(error)
                if last == first + 1:
                    traceback.print_exc()
            seconds = time.monotonic() - started
            peak = memory()
            before = before or peak  # with what the first input imported
            if peak - before > MEMORY and outcome in ("returned", "refused"):
                kind, outcome, before = "violation", f"{kind}: memory grew by {(peak - before) >> 20} MiB", peak
            print(json.dumps([i, kind, outcome, round(seconds, 3), peak]), file=results, flush=True)
        os.chdir("/")


def watch(part: str, seed: str, first: int, last: int, tally: Tally) -> None:
    """Run one worker after another until all inputs from `first` to `last` have been tried."""
    while first < last:
        command = [sys.executable, "-m", "scripts.endurance.fuzz_readers", "--part", part, "--seed", seed]
        end = min(last, first + CHUNK)
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:  # a pipe would be filled by what panics print
            worker = subprocess.Popen(
                [*command, "--work", str(first), str(end)], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            first = listen(worker, errors, part, first, end, tally)


def listen(worker: "subprocess.Popen[str]", errors: TextIO, part: str, first: int, end: int, tally: Tally) -> int:
    """Collect the results of a worker; return the first input for the next worker."""
    assert worker.stdout is not None
    while first < end:
        heard = select.select([worker.stdout], [], [], SILENCE)[0]
        line = worker.stdout.readline() if heard else ""
        if not line:
            worker.kill()
            why = f"ended with {worker.wait()}" if heard else f"said nothing for {SILENCE:.0f} seconds"
            errors.seek(0)
            tally.add(f"{part} {first}: the worker {why}: {errors.read()[-500:]}")
            return first + 1
        i, kind, outcome, seconds, peak = json.loads(line)
        tally.done, first = tally.done + 1, i + 1
        tally.counts[f"{part}: {kind}", outcome if kind != "violation" else "violation"] += 1
        tally.slowest = max(tally.slowest, (seconds, f"{part} {i} ({kind})"))
        tally.peak = max(tally.peak, peak)
        if kind == "violation":
            tally.add(f"{part} {i}: {outcome}")
        if tally.done % 5000 == 0:
            print(f"{tally.done:,} inputs, {len(tally.violations)} violations", flush=True)
    worker.stdout.read()  # it has said all, and ends
    worker.wait()
    return first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--part", choices=[*SHARES, "all"], default="all")
    parser.add_argument("--only", type=int, help="this input alone, in this process")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only is not None or given.work:
        work(given.part, given.seed, *(given.work or (given.only, given.only + 1)))
        return 0
    tally, started = Tally(), time.monotonic()
    for part, share in SHARES.items():
        if given.part in (part, "all"):
            watch(part, given.seed, 0, round(given.inputs * share) if given.part == "all" else given.inputs, tally)
    for (kind, outcome), count in sorted(tally.counts.items()):
        print(f"{count:>8,}  {outcome:9}  {kind}")
    seconds, (longest, which) = time.monotonic() - started, tally.slowest
    print(
        f"{tally.done:,} inputs in {seconds:.0f} seconds; slowest: {which}, {longest:.2f} s; peak memory {tally.peak >> 20} MiB"
    )
    print(f"{len(tally.violations)} violations (again: --part PART --seed {given.seed} --only NUMBER)")
    for text in tally.violations:
        print(f"  {text[:1000]}")
    return 1 if tally.violations or not tally.done else 0


if __name__ == "__main__":
    sys.exit(main())

"""Kill a training run repeatedly, resume it each time with the same command, and compare the result with an undisturbed run.

    python scripts/endurance/kill_runs.py --model MODEL --train TRAIN.csv --text text --label label --work FOLDER
    python scripts/endurance/kill_runs.py ... --how term                 # SIGTERM in place of SIGKILL
    mount -t tmpfs -o size=1500m tmpfs /mnt/small
    python scripts/endurance/kill_runs.py ... --how disk --work /mnt/small   # the disk is full for some seconds

One kill in three happens while a checkpoint is written, the others at random moments; of two processes one or both are killed.
The final tensors must be bit-identical, `log.jsonl` must have each step once with the same values, only the files of a finished
run may remain, and SIGTERM must lead to exit status 143. Exit status 1 otherwise. Each start is a fork of a process that has
already imported everything, and runs the entry point of the command.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["ACCELERATE_USE_CPU"] = "true"

import torch
import yaml
from safetensors.torch import load_file

import nlp_transfer.fine_tune  # noqa: F401  what every life needs
from nlp_transfer.cli import main as command

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"strategy": {"name": "lora"}},
    "gradual_unfreezing": {"strategy": {"name": "gradual_unfreezing"}},
    "translation": {"translation": True},
}
DEADLINE = 600.0  # seconds that one life may take


class Life:
    """The processes of one start of the command, until they end."""

    def __init__(self, config: Path, processes: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.ids = [self._fork(config, rank, processes, port, log) for rank in range(processes)]
        self.statuses: dict[int, int] = {}

    def _fork(self, config: Path, rank: int, processes: int, port: int, log: Path) -> int:
        child = os.fork()
        if child:
            return child
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(file, stream)
        if processes > 1:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        sys.argv = ["nlp-transfer", "train", str(config)]
        try:
            command()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        os._exit(99)

    def alive(self) -> bool:
        for child in self.ids:
            if child not in self.statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                self.statuses[child] = os.waitstatus_to_exitcode(ended[1])
        return len(self.statuses) < len(self.ids)

    def end(self, number: int | None = None, which: list[int] | None = None) -> list[int]:
        """Send a signal to some of the processes, wait for all, and return their exit statuses (negative: a signal)."""
        for place in which if which is not None else range(len(self.ids)):
            if number is not None and self.ids[place] not in self.statuses:
                os.kill(self.ids[place], number)
        found, began = [], time.monotonic()
        for child in self.ids:
            while child not in self.statuses:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.statuses[child] = os.waitstatus_to_exitcode(status)
                elif time.monotonic() - began > DEADLINE:
                    os.kill(child, signal.SIGKILL)
                    raise SystemExit(f"a process did not end within {DEADLINE:.0f} seconds")
                else:
                    time.sleep(0.005)
            found.append(self.statuses[child])
        return found


def document(given: argparse.Namespace, case: str, processes: int, output: Path) -> dict[str, Any]:
    settings, train = CASES[case], str(output.parent / "train.csv")
    task: dict[str, Any] = {"name": "text_classification", "text": given.text, "label": given.label}
    if settings.get("translation"):
        task = {"name": "translation", "source": given.text, "target": "backwards", "target_vocabulary": 600}
        task |= {"translated_rows": 4, "beams": 1, "decoder_layers": 1, "max_length": 24}
    return {
        "model": given.model, "data": {"train": train}, "task": task,
        "strategy": settings.get("strategy", {"name": "full"}), "output_dir": str(output),
        "training": {
            "max_steps": given.steps, "batch_size": 8 // processes, "checkpoint_every": 4, "evaluate_every": given.steps // 3,
            "logging_steps": 1, "process_timeout": 20,
        },
    }  # fmt: skip


def saving(folder: Path) -> bool:
    return any(folder.glob("checkpoints/.part-*"))


def logged(folder: Path) -> int:
    try:
        return (folder / "log.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def wait_for(life: Life, what: Callable[[], bool]) -> bool:
    """Wait for a condition; return whether it became true before the processes ended."""
    began = time.monotonic()
    while time.monotonic() - began < DEADLINE:
        if what():
            return True
        if not life.alive():
            return False
        time.sleep(0.001)
    raise SystemExit("a run made no progress")


def same(one: Path, other: Path) -> list[str]:
    """Return the differences between two finished runs."""
    first, second = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    found = [f"tensor {name}" for name in first.keys() | second.keys() if not torch.equal(first[name], second[name])]
    lines = [list(map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())) for folder in (one, other)]
    logs = [[{k: v for k, v in line.items() if k != "examples_per_second"} for line in log] for log in lines]
    found += ["log.jsonl"] if logs[0] != logs[1] else []
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (one, other)]
    found += ["metrics"] if results[0]["metrics"] != results[1]["metrics"] else []
    # A kill after result.json was written may leave the checkpoints, and nothing else.
    left = {path.name for path in other.rglob("*") if path.name.startswith(".part")}
    return found + [f"{name} is left" for name in sorted(left)]


class Torture:
    """Kills and resumes one case with a given number of processes."""

    def __init__(self, given: argparse.Namespace, case: str, processes: int) -> None:
        self.given, self.case, self.processes = given, case, processes
        self.random = random.Random(f"{given.seed} {case} {processes}")
        self.folder = Path(given.work) / f"{case}-{processes}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.log = Path(tempfile.gettempdir()) / f"kill_runs-{os.getpid()}-{case}-{processes}.txt"  # not on a disk that is filled
        with Path(given.train).open(newline="", encoding="utf-8") as file:
            rows = [row for row, _ in zip(csv.DictReader(file), range(given.rows), strict=False)]
        with (self.folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([given.text, given.label, "backwards"])
            # What is translated is each text into its words in reverse order.
            writer.writerows([row[given.text], row[given.label], " ".join(row[given.text].split()[::-1])] for row in rows)
        self.problems: list[str] = []
        self.lives = self.runs = self.in_saving = 0

    def begin(self, name: str) -> Life:
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(document(self.given, self.case, self.processes, self.folder / name)))
        self.lives += 1
        return Life(config, self.processes, self.log)

    def go(self) -> None:
        if any(status := self.begin("straight").end()):
            raise SystemExit(f"{self.case}: the run that is left alone ended with {status}; see {self.log}")
        shutil.rmtree(self.folder / "straight/checkpoints", ignore_errors=True)
        kills = 0
        while kills < self.given.kills:
            kills += self.hit(kills)
        while not (self.folder / "run/result.json").exists():
            if any(status := self.begin("run").end()):
                self.problems.append(f"the last life ended with {status}")
                break
        else:
            self.compare()

    def hit(self, number: int) -> int:
        """Start the command and kill it at a random moment; return 0 if it finished before."""
        run, life = self.folder / "run", self.begin("run")
        before, ahead = logged(run), self.random.randint(1, 5)
        while_saving = number % 3 == 2
        ready = wait_for(life, lambda: logged(run) > 0 and logged(run) >= min(before, self.given.steps) + ahead - 4)
        if ready and while_saving:
            ready = wait_for(life, lambda: saving(run))
            time.sleep(self.random.uniform(0, 0.02))
        elif ready:
            time.sleep(self.random.uniform(0, 0.3))
        if self.given.how == "disk":
            return self.fill(life)
        every = list(range(self.processes))
        which = every if self.processes == 1 or self.given.how == "term" else self.random.choice([every, [0], [1]])
        self.in_saving += while_saving and saving(run)
        finished = not life.alive()
        statuses = life.end(signal.SIGTERM if self.given.how == "term" else signal.SIGKILL, which)
        if (run / "result.json").exists():
            self.compare()
            return 0 if finished else 1
        if self.given.how == "term" and any(status not in (143, -signal.SIGTERM) for status in statuses):  # -15: before all
            self.problems.append(f"SIGTERM ended processes with {statuses}")
        return 1

    def fill(self, life: Life) -> int:
        """Fill the disk for some seconds during the run."""
        run, filler = self.folder / "run", Path(self.given.work) / "filler"
        if not life.alive():
            life.end()
            self.compare()
            return 0
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
            began = time.monotonic()
            while life.alive() and time.monotonic() - began < 8:  # checkpoints that go make room, which is taken as well
                try:
                    file.write(bytes(1 << 16))
                except OSError:
                    time.sleep(0.01)
            end = self.random.choice([None, signal.SIGTERM, signal.SIGKILL]) if life.alive() else None
            if end is not None:
                life.end(end)
        filler.unlink()
        statuses = life.end()
        if (run / "result.json").exists():
            self.compare()
        elif end is None:
            self.problems.append(f"a run that had room again ended with {statuses}")
        return 1

    def compare(self) -> None:
        self.runs += 1
        self.problems += same(self.folder / "straight", self.folder / "run")
        shutil.rmtree(self.folder / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or one that may be emptied")
    parser.add_argument("--how", choices=["kill", "term", "disk"], default="kill")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=1000, help="rows of TRAIN that are used")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("model", "train"):
        if Path(getattr(given, name)).exists():
            setattr(given, name, str(Path(getattr(given, name)).absolute()))
    failed = False
    for case in given.cases:
        for processes in given.processes:
            began, torture = time.monotonic(), Torture(given, case, processes)
            torture.go()
            failed |= bool(torture.problems)
            print(
                f"{case}, {processes} process{'es' if processes > 1 else ''}: {given.kills} x {given.how}, "
                f"{torture.in_saving} while saving, {torture.lives} lives, {torture.runs} finished runs compared, "
                f"{time.monotonic() - began:.0f} s: {'; '.join(torture.problems) or 'all the same to the bit'}",
                flush=True,
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()

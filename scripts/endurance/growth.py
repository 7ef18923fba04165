"""Measure how the time before training grows with the rows, and how the time to resume grows with the steps.

    python scripts/endurance/growth.py [ROWS ...] [--steps STEPS ...] [--tokenizer MODEL]

For each number of rows (default 10,000, 100,000 and 1,000,000; 0: none): wall and CPU seconds to read, check and split a CSV
file and to tokenize it, twice, as the second time uses the cache; and the peak memory above that of an empty process, without
and with memory-mapped files (Linux only). For each number of steps (default 10 and 10,000): a tiny run is killed after its
checkpoint of that step, and the same command resumes it. The time to resume, without imports, ends when a batch enters the
model.

Exit status 0 if from the smallest to the largest size the rows per second fall to no less than half, and the time to resume at
most doubles. Every measurement has its own process and starts with an empty cache.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.builders import sentiment_rows, write
from tests.helpers.models import save_tiny

ROOT = Path(__file__).parents[2]
FIELDS = ("RssAnon", "VmRSS")
LABELS, DEADLINE = 20, 3600.0
os.environ.pop("TOKENIZERS_PARALLELISM", None)  # set for tests, which are small


def write_rows(path: Path, rows: int) -> None:
    """Write distinct texts of 5 to 40 words from a vocabulary of 20,000, with twenty labels."""
    generator = random.Random(0)
    words = [f"{first}{second}" for first in sentiment_words() for second in range(400)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for i in range(rows):
            text = " ".join(generator.choices(words, k=generator.randint(5, 40)))
            writer.writerow((f"{text} {i}", f"label {generator.randrange(LABELS)}"))


def sentiment_words() -> list[str]:
    return sorted({word for text, _ in sentiment_rows(200) for word in text.split()})


class Memory(threading.Thread):
    """Tracks the peak memory of this process in MiB, without and with memory-mapped files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.all = 0.0

    def run(self) -> None:
        while True:
            with open("/proc/self/status", encoding="utf-8") as file:
                kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in file) if name in FIELDS}
            self.own, self.all = max(self.own, kib["RssAnon"] / 1024), max(self.all, kib["VmRSS"] / 1024)
            time.sleep(0.005)


def measure_rows(model: str, file: str) -> None:
    """Measure in this process; print the results as JSON."""
    import importlib

    story: Any = importlib.import_module("nlp_transfer.fine_tune")
    settings: dict[str, Any] = {"model": model, "data": {"train": file}, "task": "text_classification", "output_dir": "unused"}
    run = story.resolve(settings)
    checkpoint = story.Checkpoint.open(story.find_model(model))
    assert checkpoint.tokenizer.is_fast
    memory = Memory()
    memory.start()
    time.sleep(0.1)
    before = memory.own, memory.all
    marks = [(time.monotonic(), time.process_time())]
    splits, task = story.read_splits(run.config.data, run.task, run.config.training, 0)
    marks.append((time.monotonic(), time.process_time()))
    task = task.prepare(checkpoint, splits.rows["train"])
    tables = story._encode(splits, task, checkpoint, "auto")
    marks.append((time.monotonic(), time.process_time()))
    figures = {
        "rows": sum(map(len, tables.values())), "own": memory.own - before[0], "all": memory.all - before[1],
        "read": marks[1][0] - marks[0][0], "read_cpu": marks[1][1] - marks[0][1],
        "encode": marks[2][0] - marks[1][0], "encode_cpu": marks[2][1] - marks[1][1],
    }  # fmt: skip
    print(json.dumps(figures))


def measure_resume(config: str) -> None:
    """Resume a run in this process; print the seconds until a batch enters the model."""
    import importlib

    story: Any = importlib.import_module("nlp_transfer.fine_tune")
    from torch.nn.modules.module import register_module_forward_pre_hook

    began, train = time.monotonic(), story.Trainer.train

    def first_pass(*_: Any) -> None:
        print(json.dumps({"seconds": time.monotonic() - began}), flush=True)
        os._exit(0)

    def training(self: Any) -> Any:
        register_module_forward_pre_hook(first_pass)
        return train(self)

    story.Trainer.train = training
    story.fine_tune(config)


def child(*arguments: object, cache: Path) -> dict[str, Any]:
    """Run one measurement in a child process; return its results."""
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], env=os.environ | {"NLP_TRANSFER_CACHE": str(cache)},
        capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def killed_at(config: Path, output: Path, step: int) -> None:
    """Run the command until the checkpoint of a step exists, then kill it."""
    began = time.monotonic()
    with (output.parent / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "nlp_transfer", "train", str(config)], stdout=log, stderr=log, cwd=ROOT)
        while not (output / "checkpoints" / f"step-{step}").is_dir():
            assert process.poll() is None, (output.parent / "log").read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() - began < DEADLINE, f"no checkpoint of step {step}"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()


def growth_with_rows(counts: list[int], model: str, folder: Path) -> bool:
    heads = f"{'rows':>10}  {'cache':<6} {'read':>8} {'CPU':>7} {'tokens':>9} {'CPU':>7} {'peak memory':>12} {'and mapped':>13}"
    print(f"{heads} {'microseconds a row':>20}")
    spent: dict[str, list[float]] = {"empty": [], "filled": []}
    for count in counts:
        file = folder / f"{count}.csv"
        write_rows(file, count)
        for state, by_count in spent.items():
            found = child("--measure-rows", model, file, cache=folder / "cache")
            assert found["rows"] == count
            by_count.append((found["read_cpu"] + found["encode_cpu"]) / count)
            print(
                f"{count:>10,}  {state:<6} {found['read']:>6.1f} s {found['read_cpu']:>5.1f} s {found['encode']:>7.2f} s "
                f"{found['encode_cpu']:>5.2f} s {found['own']:>8.0f} MiB {found['all']:>9.0f} MiB {1e6 * by_count[-1]:>20.1f}",
                flush=True,
            )
        file.unlink()
    return all(by_count[-1] <= 2 * by_count[0] for by_count in spent.values())


def growth_with_steps(counts: list[int], model: str, folder: Path) -> bool:
    print(f"{'step':>10}  resuming the run")
    seconds = []
    for count in counts:
        home = folder / f"steps-{count}"
        home.mkdir()
        config, output = home / "run.yaml", home / "run"
        document = {
            "model": model, "data": {"train": str(write(home / "train.csv", sentiment_rows(400)))},
            "task": {"name": "text_classification"}, "output_dir": str(output),
            "training": {
                "max_steps": 10 * max(counts), "batch_size": 2, "checkpoint_every": count, "evaluate_every": 10 * max(counts),
                "logging_steps": 1000, "precision": "fp32",
            },
        }  # fmt: skip
        config.write_text(json.dumps(document))
        killed_at(config, output, count)
        seconds.append(min(child("--measure-resume", config, cache=folder / "cache")["seconds"] for _ in range(3)))
        print(f"{count:>10,}  {seconds[-1]:.2f} s (the least of three)", flush=True)
    return seconds[-1] <= 2 * seconds[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", nargs="*", type=int, default=[10, 10_000])
    parser.add_argument("--tokenizer", help="A model folder; its tokenizer is used. Without: a tiny one, whole words.")
    parser.add_argument("--measure-rows", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure-resume", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure_rows:
        measure_rows(*given.measure_rows)
        return 0
    if given.measure_resume:
        measure_resume(given.measure_resume)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = str(save_tiny("bert", folder / "tiny"))
        counts = sorted(filter(None, given.rows))
        holds = [growth_with_rows(counts, given.tokenizer or tiny, folder)] if counts else []
        holds += [growth_with_steps(sorted(given.steps), tiny, folder)] if given.steps else []
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())

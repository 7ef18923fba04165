"""Check that the memory of `predict` and `evaluate` does not grow with the input file.

    python scripts/endurance/stream_predict.py [ROWS]

Creates a tiny model and two files of 20,000 and ROWS rows (default 1,000,000), and prints the peak memory of the commands on
each. Takes a few minutes with the default.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.builders import sentiment_rows, train_tiny

SMALL = 20_000


def write_many(path: Path, rows: int) -> Path:
    base = sentiment_rows(1000)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "text", "label"))
        writer.writerows((i, *base[i % 1000]) for i in range(rows))
    return path


def measure(*arguments: object) -> tuple[float, float]:
    """Run one command; return its peak memory in MiB and its seconds."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "nlp_transfer", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"the command failed: {arguments}"
    return usage.ru_maxrss / 1024, time.monotonic() - started


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train_tiny(folder)
        for size in (SMALL, rows):
            source = write_many(folder / f"{size}.csv", size)
            output = folder / f"{size}-out.csv"
            memory, seconds = measure("predict", run.output_dir, "--input", source, "--output", output, "--batch-size", 256)
            with output.open(encoding="utf-8") as file:
                ids = [int(line.partition(",")[0]) for line in list(file)[1:]]
            assert ids == list(range(size)), "a row is missing or out of order"
            print(f"predict  {size:>9,} rows: {memory:6.0f} MiB, {seconds:5.0f} s")
            memory, seconds = measure("evaluate", run.output_dir, "--data.test", source, "--batch-size", 256)
            print(f"evaluate {size:>9,} rows: {memory:6.0f} MiB, {seconds:5.0f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)

"""Kill `predict` repeatedly, run the same command again each time, and compare the output with an undisturbed run.

    python scripts/endurance/kill_predictions.py [KILLS]

Creates a tiny model and a file of 60,000 rows, some of which cannot be predicted. For each format, and for one and two processes,
the command is killed KILLS times (default 5) by SIGKILL or SIGTERM at random moments. The output must be byte-identical, and no
other file may remain. Exit status 1 otherwise. Each kill takes about a minute.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.builders import sentiment_rows, train_tiny

ROWS = 60_000


def main(kills: int) -> int:
    failed = 0
    draw = random.Random(0)
    around = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train_tiny(folder)
        texts = [text for text, _ in sentiment_rows(1000)]
        with (folder / "in.jsonl").open("w") as file:
            for i in range(ROWS):
                file.write(
                    "broken\n" if i % 5000 == 99 else json.dumps({"id": i, "text": texts[i % 1000] if i % 77 else None}) + "\n"
                )
        for ending in (".csv", ".jsonl", ".parquet", ".txt"):
            for processes in (1, 2):
                place = folder / f"{ending[1:]}-{processes}"
                command = [
                    sys.executable,
                    "-m",
                    "nlp_transfer",
                    "predict",
                    str(run.output_dir),
                    "--input",
                    str(folder / "in.jsonl"),
                ]
                command += ["--processes", str(processes), "--output"]
                started = time.monotonic()
                subprocess.run([*command, str(place / f"whole{ending}")], env=around, check=True, capture_output=True)
                took = time.monotonic() - started
                for _ in range(kills):
                    process = subprocess.Popen([*command, str(place / f"out{ending}")], env=around, stderr=subprocess.DEVNULL)
                    time.sleep(draw.uniform(0.1, 1.0) * took)
                    draw.choice([process.kill, process.terminate])()
                    if process.wait() == 0:
                        break
                else:
                    subprocess.run([*command, str(place / f"out{ending}")], env=around, check=True, capture_output=True)
                same = (place / f"out{ending}").read_bytes() == (place / f"whole{ending}").read_bytes()
                left = sorted(path.name for path in place.iterdir())
                good = same and left == [f"out{ending}", f"whole{ending}"]
                failed += not good
                print(
                    f"{ending}, {processes} processes: {'the same bytes' if same else 'OTHER BYTES'}, files: {left}", flush=True
                )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))

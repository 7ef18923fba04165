"""Let four processes write the same files at the same time, while some are killed and links and pipes are planted.

    python -m scripts.endurance.race_outputs                     # 24,000 writes, about 5 minutes
    python -m scripts.endurance.race_outputs --writes 2000 --seed 1

In each round four processes write one output: predictions (an `OutputFile` with a `Writer`), bytes (`write_bytes`, `replacing`)
or a folder (`replacing_folder`). Some are killed by SIGKILL at a random moment. Meanwhile links (to a victim file or dangling),
pipes and files are planted at guessable names. The output must be absent or exactly the content of one writer; the content of a
writer that reports success must have been complete when it was renamed; planted files and the targets of links must be
unchanged; and after a last writer no other file may remain. Exit status 1 otherwise.
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.helpers.fuzz.outputs import Race


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=24_000)
    parser.add_argument("--seed", default="0")
    given = parser.parse_args()
    started = time.monotonic()
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as name:
        race = Race(Path(name))
        rounds = 0
        while race.writes < given.writes:
            race.round(random.Random(f"{given.seed}:{rounds}"))
            rounds += 1
            if rounds % 500 == 0:
                print(f"{race.writes:,} writes, {len(race.violations)} violations", flush=True)
    for what, count in sorted(race.counts.items()):
        print(f"{count:>8,}  {what}")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) >> 10
    seconds = time.monotonic() - started
    print(f"{race.writes:,} writes in {rounds:,} rounds and {seconds:.0f} seconds; peak memory of a process {peak} MiB")
    print(f"{len(race.violations)} violations")
    for text in race.violations[:50]:
        print(f"  {text[:1000]}")
    return 1 if race.violations else 0


if __name__ == "__main__":
    sys.exit(main())

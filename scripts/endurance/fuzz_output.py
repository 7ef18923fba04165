"""Print 100,000 texts with and without secrets in all encodings, in pieces: secrets are hidden, all else is unchanged.

    python -m scripts.endurance.fuzz_output
    python -m scripts.endurance.fuzz_output --inputs 5000 --seed 1

Prints the number of inputs of each kind, violations and peak memory. Exit status 1 if there is a violation.
"""

import argparse
import os
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

VALUES = ("plain-value-of-a-service-42", "plain/value of+a%service=42", "wört-mit-ümlaut-42")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", default="0")
    asked = parser.parse_args()
    from tests.helpers.fuzz.cases import ViolationError
    from tests.helpers.fuzz.output import check

    kinds: Counter[str] = Counter()
    violations = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder
        for i in range(asked.inputs):
            os.environ["SERVICE_TOKEN"] = VALUES[i % len(VALUES)]
            try:
                kinds.update([check(f"{asked.seed}:{i}", VALUES[i % len(VALUES)])])
            except ViolationError as error:
                violations += 1
                print(f"VIOLATION {error}", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{dict(kinds)}\n{asked.inputs} inputs, {violations} violations, peak memory {memory} MiB")
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()

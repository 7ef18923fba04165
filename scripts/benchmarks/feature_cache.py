"""What caching a fixed encoder's output is worth: `strategy: features` with its cache and without.

    python scripts/benchmarks/feature_cache.py --model MODEL --train TRAIN.csv --test TEST.csv --text text --label label

Three trainings of the same linear head take turns: 20 epochs on cached features; 1.5 epochs without the cache; and 1.5 epochs
with it, whose accuracy must be that of the second. Seconds are those of training with all that was prepared for it, the pass that
fills the cache included (in memory: no file is found again). Printed are the medians over `--repeats`, and the ratio.
"""

import argparse
import json
import statistics
import tempfile
from typing import Any

from nlp_transfer import fine_tune

WAYS: dict[str, tuple[str, float]] = {
    "20 epochs, cached": ("memory", 20),
    "1.5 epochs, not cached": ("none", 1.5),
    "1.5 epochs, cached": ("memory", 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "test", "text", "label"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(asked.repeats):
        for way, (cache, epochs) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                run = fine_tune(
                    model=asked.model,
                    data={"train": asked.train, "test": asked.test, "validation_share": 0},
                    task={"name": "text_classification", "text": asked.text, "label": asked.label},
                    strategy={"name": "features", "cache": cache},
                    training={"epochs": epochs},
                    output_dir=f"{folder}/run",
                )
            seconds = run.result["train"]["seconds"]
            found[way].append({"seconds": seconds, "accuracy": run.metrics["test"]["accuracy"]})
            print(way, json.dumps(found[way][-1]), flush=True)
    seconds = {way: statistics.median(one["seconds"] for one in runs) for way, runs in found.items()}
    for way, runs in found.items():
        print(f"{way}: median {seconds[way]:.1f} s, accuracy {statistics.median(one['accuracy'] for one in runs):.4f}")
    print(f"20 epochs cached / 1.5 epochs not cached: {seconds['20 epochs, cached'] / seconds['1.5 epochs, not cached']:.2f}")


if __name__ == "__main__":
    main()

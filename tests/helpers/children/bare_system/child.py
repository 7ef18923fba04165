"""In a process without what other systems lack: imports every module, trains a model and compares two. Prints what it found."""

import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path

import nlp_transfer
from nlp_transfer import compare, fine_tune


def main(folder: Path) -> None:
    names = [module.name for module in pkgutil.walk_packages(nlp_transfer.__path__, "nlp_transfer.")]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    rows = "".join(f"{word} number {i},{label}\n" for i in range(20) for word, label in (("good", "yes"), ("bad", "no")))
    (folder / "train.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    document = {
        "model": str(folder / "tiny"),
        "data": {"train": str(folder / "train.csv")},
        "task": "text_classification",
        "training": {"max_steps": 2, "batch_size": 8},
        "output_dir": str(folder / "run"),
    }
    run = fine_tune(document)
    done = compare(document, ["full", "bitfit"], [0])
    outcomes = {row.label: done.output_dir / "runs" / f"{row.label}-all-0" / "result.json" for row in done.rows}
    found = {
        "modules": len(names),
        "missing": [name for name in ("fork", "getuid", "sched_getaffinity") if not hasattr(os, name)],
        "steps": run.result["train"]["steps"],
        "peak_memory_bytes": run.result["train"]["peak_memory_bytes"],
        "compared": {label: json.loads(path.read_text(encoding="utf-8"))["train"]["steps"] for label, path in outcomes.items()},
        "failed": done.failed,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

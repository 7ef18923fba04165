"""Few rows of each label: `strategy: few_shot` beside the setfit package, on the same rows and the same checkpoint.

    python scripts/benchmarks/few_shot.py --model MODEL --train TRAIN.csv --test TEST.csv --text text --label label \\
        --setfit-python SETFIT_VENV/bin/python

setfit needs an environment of its own (`python -m venv V; V/bin/pip install setfit`). It runs with its own defaults and 20 pairs
of each kind a row (`num_iterations`, as in its paper, 2209.11055): all pairs, its default, are hours of work from a few hundred
rows on. `--setfit-steps N` stops it after N steps, for an idea of its time. Both sides take turns, seed by seed, with the same
number of threads; what is printed are accuracy and seconds of each (training alone) and the medians. MODEL is a folder that
sentence-transformers can load too.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
import json, sys
from nlp_transfer import fine_tune
asked = json.loads(sys.argv[1])
run = fine_tune(
    model=asked["model"], data={"train": asked["train"], "test": asked["test"], "validation_share": 0},
    task={"name": "text_classification", "text": asked["text"], "label": asked["label"]},
    strategy={"name": "few_shot", **asked["strategy"]},
    training={"seed": asked["seed"], **asked["training"]}, output_dir=asked["folder"],
)
print(json.dumps({"accuracy": run.metrics["test"]["accuracy"], "seconds": run.result["train"]["seconds"]}))
"""

THEIRS = """
import csv, json, sys, time
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
asked = json.loads(sys.argv[1])
def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row[asked["text"]] for row in rows], [row[asked["label"]] for row in rows]
texts, labels = read(asked["train"])
tests, right = read(asked["test"])
model = SetFitModel.from_pretrained(asked["model"], labels=sorted(set(labels)))
arguments = TrainingArguments(
    output_dir=asked["folder"], num_iterations=20, seed=asked["seed"], save_strategy="no", report_to="none",
    max_steps=asked["steps"] or -1,
)
trainer = Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict({"text": texts, "label": labels}))
began = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - began
found = [str(label) for label in model.predict(tests, show_progress_bar=False)]
print(json.dumps({"accuracy": sum(a == b for a, b in zip(found, right)) / len(right), "seconds": seconds}))
"""


def run(python: str, code: str, asked: dict[str, object], threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        asked = asked | {"folder": str(Path(folder) / "run")}
        done = subprocess.run(
            [python, "-c", code, json.dumps(asked)], check=False, text=True, capture_output=True, cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--train", "--test"):
        parser.add_argument(name, required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--label", default="label")
    parser.add_argument("--setfit-python", help="the Python of an environment with setfit; without it only ours is run")
    parser.add_argument("--setfit-steps", type=int, default=0, help="stop setfit after so many steps; 0: its whole epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--strategy", type=json.loads, default={}, help="further settings of few_shot, as JSON")
    parser.add_argument("--training", type=json.loads, default={}, help="training settings, as JSON")
    given = parser.parse_args()
    asked: dict[str, object] = {"text": given.text, "label": given.label}
    for name in ("model", "train", "test"):
        path = Path(getattr(given, name))
        asked[name] = str(path.absolute()) if path.exists() else getattr(given, name)
    with Path(given.train).open(newline="", encoding="utf-8") as file:
        print(f"{sum(1 for _ in csv.DictReader(file))} rows, {given.threads} threads")
    sides = {"few_shot": (sys.executable, OURS)} | ({"setfit": (given.setfit_python, THEIRS)} if given.setfit_python else {})
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for seed in given.seeds:
        for name, (python, code) in sides.items():
            more = {"seed": seed, "strategy": given.strategy, "training": given.training, "steps": given.setfit_steps}
            found = run(python, code, asked | more, given.threads)
            figures[name].append(found)
            print(f"seed {seed}  {name:9} accuracy {found['accuracy']:.4f}  {found['seconds']:.1f} s", flush=True)
    for name, runs in figures.items():
        accuracy, seconds = (statistics.median(one[key] for one in runs) for key in ("accuracy", "seconds"))
        print(f"median  {name:9} accuracy {accuracy:.4f}  {seconds:.1f} s")


if __name__ == "__main__":
    main()

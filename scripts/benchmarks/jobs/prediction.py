"""Prediction of Banking77's test rows: this project and transformers' pipeline."""

import json
from pathlib import Path
from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker, take_turns
from tables import megabytes, ratios, spread

ABOUT = """The same saved model predicts a list of texts in memory, in file order, without loading. Each library uses its defaults
unless stated otherwise. `difference` is the largest difference, over all rows and labels, to the probabilities of the pipeline
with default settings (fp32)."""


def run(setting: Setting) -> dict[str, Any]:
    data = setting.data("banking77")
    folder = setting.run or _train(setting, data)
    model = str(Path(folder) / "model")
    labels = list(json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["label2id"])
    common = {"test": data["files"]["test"], "rows": 128 if setting.quick else None}
    workers: list[Worker] = []

    def ours(title: str, **options: Any) -> None:
        workers.append(setting.worker(title, "ours_prediction.py", run=folder, options=options, **common))

    def theirs(title: str, **settings: Any) -> None:
        workers.append(setting.worker(title, "transformers_pipeline.py", model=model, **common, **settings))

    try:
        theirs("pipeline, as it comes")
        theirs("pipeline, batch_size=32", batch_size=32)
        theirs("pipeline, batch_size=32, bf16", batch_size=32, dtype="bfloat16")
        ours("here, defaults")
        ours("here, fp32", precision="fp32")
        ours("here, bf16", precision="bf16")
        found = take_turns(workers, setting.repeats, {})
        answered = {worker.name: worker.turn(probabilities=True, labels=labels)["probabilities"] for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    plain, batched = (found[worker.name] for worker in workers[:2])
    rows = []
    for name, answers in found.items():
        speed = [answer["rows_per_second"] for answer in answers]
        rows.append({
            "library": name, "rows/s": spread(speed),
            "library / pipeline": ratios(speed, [answer["rows_per_second"] for answer in plain]),
            "library / batch_size=32": ratios(speed, [answer["rows_per_second"] for answer in batched]),
            "difference": largest(answered[name], answered[workers[0].name]),
            "same label": agreement(answered[name], answered[workers[0].name]),
            "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    title = f"Banking77's test rows ({common['rows'] or data['rows']['test']})"
    return {"about": ABOUT, "tables": [{"title": title, "rows": rows}], "notes": [f"model: {folder}"], "turns": found}


def largest(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def agreement(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the share of rows with the same predicted label."""
    return sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(one, other, strict=True)) / len(one)


def _train(setting: Setting, data: Answer) -> str:
    """Train a model on this data: one epoch, or a few steps with `--quick`."""
    files = {"train": data["files"]["train"], "test": data["files"]["test"], "validation_share": 0}
    training = {"max_steps": 5} if setting.quick else {"epochs": 1}
    with setting.worker("model", "ours_whole.py", model=data["model"], max_length=128, data=files, training=training) as worker:
        worker.turn(seed=0)
    return str(setting.out / "work" / "model")

"""Prediction of test rows: this project on each back end, transformers' pipeline, and engines that were set up by hand."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker, take_turns
from tables import Row, megabytes, ratios, spread
from workers.plain import texts_of

ABOUT = """The same saved model predicts a list of texts in memory, in file order, without loading; tokenization is counted for
all. `by hand` is what a skilled user would write: the same graph in the engine, the tokenizers library, rows sorted by length,
batches of 32. Rows marked `here` are `load_predictor`. `difference` is the largest difference, over all rows and labels, to the
probabilities of the pipeline with default settings (fp32). With `--shape`, the weights are random, so accuracy means nothing.

The second table has the seconds from starting a command to its prediction of one text, in a new process."""
PIPELINE, BY_HAND, HERE = "pipeline, as it comes", "by hand, ", "here, "
# Engine, precision of the export and of the computation, graph.
ENGINES = (
    ("onnx", "fp32", "f32", "onnx/model.onnx"),
    ("onnx", "int8", "f32", "onnx/model_quantized.onnx"),
    ("openvino", "fp32", "f32", "openvino_model.xml"),
    ("openvino", "fp32", "bf16", "openvino_model.xml"),
    ("openvino", "int8", "f32", "openvino_model.xml"),
    ("openvino", "int8", "bf16", "openvino_model.xml"),
)
ROWS_TO_CHECK = 300  # rows on which exports are checked and int8 is calibrated


def run(setting: Setting) -> dict[str, Any]:
    tables: list[dict[str, Any]] = []
    turns: dict[str, Any] = {}
    for name in setting.data_sets:
        data = setting.data(name)
        check = _rows_to_check(setting, data, name)
        folder = setting.run if setting.run and name == "banking77" else _train(setting, data, check, name)
        exports = _exports(setting, check, folder, name)
        rows, turns[name] = _speed(setting, data, folder, exports, name)
        count = setting.rows or data["rows"]["test"]
        tables.append({"title": f"{name}, {count} test rows of {data['mean_tokens']:.0f} tokens on average", "rows": rows})
    rows, turns["first prediction"] = _first_prediction(setting, folder, exports, texts_of(data["files"]["test"], 1)[0])
    tables.append({"title": f"seconds from the command to a prediction, {name}", "rows": rows})
    return {"about": ABOUT, "tables": tables, "notes": [f"model: {setting.shape or setting.model}"], "turns": turns}


def _speed(setting: Setting, data: Answer, folder: str, exports: dict[str, Answer], name: str) -> tuple[list[Row], Any]:
    """Let the libraries predict in turns; return the rows of the table, and the turns."""
    model = str(Path(folder) / "model")
    labels = list(json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["label2id"])
    common = {"test": data["files"]["test"], "rows": 64 if setting.quick else setting.rows, "max_length": data["max_length"]}
    sizes: dict[str, int] = {}
    workers: list[Worker] = []

    def add(title: str, script: str, size: int, **settings: Any) -> None:
        workers.append(setting.worker(title, script, **common, **settings))
        sizes[title] = size

    try:
        plain = (Path(model) / "model.safetensors").stat().st_size
        for title, settings in (("as it comes", {}), ("batch_size=32", {"batch_size": 32}),
                                ("batch_size=32, bf16", {"batch_size": 32, "dtype": "bfloat16"})):  # fmt: skip
            add(f"pipeline, {title}", "transformers_pipeline.py", plain, model=model, **settings)
        for precision in ("fp32", "bf16"):
            options = {"precision": precision, "backend": "torch"}
            add(f"{HERE}torch {precision}", "ours_prediction.py", plain, run=folder, options=options)
        for engine, precision, hint, graph in ENGINES:
            export = exports[f"{engine}-{precision}"]
            title = f"{engine} {precision}" + (", computed in bf16" if hint == "bf16" else "")
            add(f"{BY_HAND}{title}", "engine_by_hand.py", export["bytes"], engine=engine, graph=graph, precision=hint,
                folder_of_export=export["folder"])  # fmt: skip
            options = {"precision": "bf16"} if hint == "bf16" else {}
            add(f"{HERE}{title}", "ours_prediction.py", export["bytes"], run=export["folder"], options=options)
        found = take_turns(workers, setting.repeats, {})
        answered = {worker.name: worker.turn(probabilities=True, labels=labels)["probabilities"] for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    speeds = {name: [answer["rows_per_second"] for answer in answers] for name, answers in found.items()}
    with Path(common["test"]).open(newline="", encoding="utf-8") as file:
        targets = [row["label"] for row in csv.DictReader(file)]
    rows = []
    for name, answers in found.items():
        best = [labels[row.index(max(row))] for row in answered[name]]
        rows.append({
            "library": name, "rows/s": spread(speeds[name]),
            "library / pipeline": ratios(speeds[name], speeds[PIPELINE]),
            "library / torch bf16": ratios(speeds[name], speeds[f"{HERE}torch bf16"]),
            "library / by hand": ratios(speeds[name], speeds[peer]) if (peer := name.replace(HERE, BY_HAND)) in speeds else None,
            "accuracy": sum(map(str.__eq__, best, targets)) / len(best),
            "difference": largest(answered[name], answered[PIPELINE]),
            "same label": agreement(answered[name], answered[PIPELINE]),
            "peak memory, MB": megabytes(answers), "model, MB": round(sizes[name] / 1e6),
        })  # fmt: skip
    return rows, found


def _first_prediction(setting: Setting, folder: str, exports: dict[str, Answer], text: str) -> tuple[list[Row], Any]:
    python = [sys.executable, "-m", "nlp_transfer", "predict"]
    commands = {"predict RUN TEXT": [*python, folder, text]}
    for name, export in exports.items():
        commands[f"predict {name} TEXT"] = [*python, export["folder"], text]
        if (script := Path(export["folder"]) / "predict.py").is_file():
            commands[f"{name}/predict.py TEXT"] = [sys.executable, str(script), text]
            if name.startswith("openvino"):
                cache = f"OPENVINO_CACHE={setting.out / 'compiled'}"
                commands[f"{name}/predict.py TEXT, compiled before"] = ["env", cache, sys.executable, str(script), text]
    workers: list[Worker] = []
    try:
        workers += [setting.worker(title, "first_prediction.py", command=command) for title, command in commands.items()]
        found = take_turns(workers, max(3, setting.repeats), {})
    finally:
        for worker in workers:
            worker.close()
    seconds = {title: [answer["seconds"] for answer in answers] for title, answers in found.items()}
    return [{"command": title, "seconds": spread(values)} for title, values in seconds.items()], found


def largest(one: list[list[float]], other: list[list[float]]) -> float:
    return max(abs(a - b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True))


def agreement(one: list[list[float]], other: list[list[float]]) -> float:
    """Return the share of rows with the same predicted label."""
    return sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(one, other, strict=True)) / len(one)


def _rows_to_check(setting: Setting, data: Answer, name: str) -> str:
    """Write a part of the training rows to a file."""
    path = setting.out / "data" / name / "check.csv"
    with Path(data["files"]["train"]).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[: 1 + (32 if setting.quick or setting.shape else ROWS_TO_CHECK)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def _train(setting: Setting, data: Answer, check: str, name: str) -> str:
    """Train a model on this data: one epoch, or a few steps with `--quick` or random weights."""
    files = {"train": data["files"]["train"], "test": check, "validation_share": 0}
    training = {"max_steps": 2} if setting.quick or setting.shape else {"epochs": 1}
    more = {"max_length": data["max_length"], "data": files, "training": training}
    with setting.worker(f"model-{name}", "ours_whole.py", model=data["model"], **more) as worker:
        worker.turn(seed=0)
    return str(setting.out / "work" / f"model-{name}")


def _exports(setting: Setting, check: str, folder: str, name: str) -> dict[str, Answer]:
    """Export a run for every engine; return the folder and the bytes of each export."""
    exports = {}
    with setting.worker(f"exports-{name}", "ours_export.py") as worker:
        for to, precision in dict.fromkeys((engine, precision) for engine, precision, _, _ in ENGINES):
            output = str(setting.out / "exports" / name / f"{to}-{precision}")
            request = {"to": to, "precision": precision, "output": output, "settings": {"text": "text", "label": "label"}}
            exports[f"{to}-{precision}"] = worker.turn(run=folder, rows=check, **request)
    return exports

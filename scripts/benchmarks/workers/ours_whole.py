"""Worker for this project with a complete training in each turn, up to the end or to a target metric."""

import gc
import shutil
import time
from typing import Any

import yaml
from protocol import Channel
from workers.clock import Stopwatch
from workers.watched import watch

from nlp_transfer.strategies import strategy_from

channel = Channel()
settings = channel.settings
strategy = settings.get("strategy", {"name": "full"})
trainers: list[Any] = []
fine_tune = watch(trainers.append)
prepared: list[float] = []
kind: Any = type(strategy_from(strategy))
prepare_data = kind.prepare_data


def timed(*args: Any) -> Any:
    """Add the time that a strategy needs before the first step to that of training."""
    began = time.perf_counter()
    job = prepare_data(*args)
    prepared.append(time.perf_counter() - began)
    return job


kind.prepare_data = timed


class ReachedError(Exception):
    """Ends a training that has reached its target."""


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return accuracy, seconds and steps; with a `target`, at the first evaluation that reaches it (None: none does)."""
    target, folder = request.get("target"), settings["folder"]
    shutil.rmtree(folder, ignore_errors=True)
    trainers.clear()
    gc.collect()  # the last turn's model must not count in this one's peak

    def look(_: int) -> None:
        history = trainers[-1].position.history if trainers else []
        if target is not None and history and history[-1]["accuracy"] >= target:
            raise ReachedError

    watch, result = Stopwatch(look), {}
    try:
        run = fine_tune(
            model=settings["model"], data=settings["data"] | request.get("data", {}),
            task={"name": "text_classification", "text": "text", "label": "label", "max_length": settings["max_length"]},
            strategy=strategy,
            training=settings.get("training", {}) | request.get("training", {}) | {"seed": request["seed"]}, output_dir=folder,
        )  # fmt: skip
        result = run.result
    except ReachedError:
        pass
    finally:
        watch.stop()
    if target is None:
        with open(f"{folder}/config.yaml", encoding="utf-8") as file:
            training = yaml.safe_load(file)["training"]
        chosen = {name: training[name] for name in ("learning_rate", "epochs", "label_smoothing", "precision")}
        whole = result["train"]["seconds"]
        return {"accuracy": result["metrics"]["test"]["accuracy"], "steps": result["train"]["steps"], "whole_seconds": whole,
                "seconds": whole - result["train"]["preparation_seconds"], "chosen": chosen}  # fmt: skip
    history = trainers[-1].position.history
    reached = next((one for one in history if one["accuracy"] >= target), None)
    evaluated = {one["step"] for one in history}
    return {
        "accuracy": (reached or history[-1])["accuracy"],
        "steps": reached and reached["step"],
        "seconds": reached and prepared[-1] + watch.seconds(reached["step"], evaluated),
        "all_seconds": prepared[-1] + watch.seconds(len(watch.times), evaluated),
    }


channel.serve(turn)

"""Worker for transformers' Trainer with a complete training in each turn, with the settings and metrics of this project."""

import gc
import shutil
import time
from typing import Any

import numpy as np
import torch
from protocol import Channel
from transformers import TrainerCallback, set_seed
from workers.clock import Stopwatch
from workers.transformers_parts import classifier, encoded, make_trainer

channel = Channel()
settings = channel.settings
torch.set_num_threads(settings["threads"])
train = encoded(settings["model"], settings["train"], settings["max_length"])
scored = encoded(settings["model"], settings["scored"], settings["max_length"], labels=train.labels)


def accuracy(predictions: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(predictions.predictions, -1) == predictions.label_ids).mean())}


class Watch(TrainerCallback):
    """Records the evaluations and ends the training when one reaches the target."""

    def __init__(self, target: float | None) -> None:
        self.target, self.history = target, []  # type: ignore[var-annotated]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.history.append((state.global_step, metrics["eval_accuracy"]))
        if self.target is not None and metrics["eval_accuracy"] >= self.target:
            control.should_training_stop = True


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return accuracy, seconds and steps; with a `target`, at the first evaluation that reaches it (None: none does)."""
    target = request.get("target")
    shutil.rmtree(settings["folder"], ignore_errors=True)
    gc.collect()  # the last turn's model must not count in this one's peak
    set_seed(request["seed"])
    watch, clock = Watch(target), Stopwatch()
    evaluation = {"eval_strategy": "steps", "eval_steps": request["evaluate_every"]} if target is not None else {}
    trainer = make_trainer(
        settings, classifier(settings, train.labels), train, eval_dataset=scored.rows, compute_metrics=accuracy,
        callbacks=[watch], seed=request["seed"], num_train_epochs=request["epochs"], max_steps=request.get("max_steps", -1),
        learning_rate=request["learning_rate"], lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.01,
        label_smoothing_factor=request["label_smoothing"], logging_strategy="no", save_strategy="no",
        per_device_eval_batch_size=64, **evaluation,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    clock.stop()
    if target is None:
        return {"accuracy": trainer.evaluate()["eval_accuracy"], "seconds": seconds, "steps": trainer.state.global_step}
    reached = next((one for one in watch.history if one[1] >= target), None)
    evaluated = {step for step, _ in watch.history}
    return {
        "accuracy": (reached or watch.history[-1])[1],
        "steps": reached and reached[0],
        "seconds": reached and clock.seconds(reached[0], evaluated),
        "all_seconds": clock.seconds(len(clock.times), evaluated),
    }


channel.serve(turn)

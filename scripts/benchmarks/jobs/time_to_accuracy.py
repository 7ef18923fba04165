"""Seconds of training until a model is good enough: Banking77, here and with a tuned Trainer."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker
from tables import megabytes, ratios, spread

TARGET, EVERY = 0.92, 20
RATES = (1e-4, 2e-4, 5e-4, 1e-3)
ABOUT = """Seconds and optimiser steps until an evaluation on rows set aside from Banking77's training rows (stratified, fixed
seed) first reaches the target; evaluations come every {every} steps, and no side's evaluating or saving counts: a cycle that
holds one counts as the median cycle. Ours are default settings, its own learning rate among them. The Trainer is the fast one
(bf16, batches of similar length, fused optimiser), with as many epochs, linear schedule and warm-up; its learning rate is the
quickest of {rates}, tried with the first seed, with and without label smoothing."""


def run(setting: Setting) -> dict[str, Any]:
    data = setting.data("banking77_validation")
    target, every = (0.0, 2) if setting.quick else (TARGET, EVERY)
    rates = RATES[:1] if setting.quick else RATES
    workers: list[Worker] = []
    tried: list[str] = []
    found: dict[str, list[Answer]] = {}
    common = {"target": target, "evaluate_every": every, "epochs": 3}
    best: dict[str, dict[str, Any]] = {}
    try:
        for dropout, title in ((None, "dropout of the checkpoint"), (0.0, "attention dropout 0")):
            training = {"evaluate_every": every} | ({} if dropout is None else {"attention_dropout": dropout})
            files = {name: data["files"][name] for name in ("train", "validation")}
            workers.append(setting.worker(
                f"time, here, {title}", "ours_whole.py", model=data["model"], max_length=128, data=files, training=training,
            ))  # fmt: skip
            peer = setting.worker(
                f"time, Trainer, {title}", "transformers_whole.py", model=data["model"], max_length=128, batch_size=32,
                train=files["train"], scored=files["validation"], attention_dropout=dropout, attention="eager",
            )  # fmt: skip
            workers.append(peer)
            choices = [{"learning_rate": rate, "label_smoothing": smoothing} for rate in rates for smoothing in (0.0, 0.1)]
            answers = [peer.turn(seed=0, **common, **choice) for choice in choices]
            order = sorted(range(len(choices)), key=lambda i: (answers[i]["seconds"] or float("inf"), -answers[i]["accuracy"]))
            best[peer.name] = choices[order[0]]
            for choice, answer in zip(choices, answers, strict=True):
                steps = f"{answer['steps']} steps" if answer["steps"] else f"not reached, {answer['accuracy']:.4f}"
                tried.append(f"Trainer, {title}, {choice}: {steps}")
                print("  " + tried[-1], flush=True)
        for seed in range(setting.repeats):
            for worker in workers:
                answer = worker.turn(seed=seed, **common, **best.get(worker.name, {}))
                found.setdefault(worker.name, []).append(answer)
                print(f"  seed {seed}  {worker.name}: {answer}", flush=True)
    finally:
        for worker in workers:
            worker.close()
    rows = [row(name, answers, best) for name, answers in found.items()]
    for i in range(0, len(workers), 2):
        ours, theirs = ([answer["seconds"] for answer in found[worker.name]] for worker in workers[i : i + 2])
        if None not in ours + theirs:
            rows[i + 1]["Trainer / here"] = ratios(theirs, ours)
    about = ABOUT.format(every=every, rates=", ".join(map(str, rates)))
    title = f"Accuracy {target} on {data['rows']['validation']} validation rows, {setting.repeats} seeds"
    return {"about": about, "tables": [{"title": title, "rows": rows}], "notes": tried, "turns": found}


def row(name: str, answers: list[Answer], best: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A side; a training that never got there makes its figures `not reached`, not smaller."""
    done = [answer for answer in answers if answer["seconds"] is not None]
    whole = len(done) == len(answers)
    return {
        "side": name.removeprefix("time, "),
        "seconds": spread([answer["seconds"] for answer in done]) if whole else "not reached by all",
        "steps": spread([answer["steps"] for answer in done]) if whole else "-",
        "reached": f"{len(done)} of {len(answers)}",
        "chosen": str(best.get(name, "defaults")),
        "peak memory, MB": megabytes(answers),
    }

"""Test accuracy of complete trainings on Banking77: this project and transformers' Trainer with the same settings."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker
from tables import interval, megabytes, spread

ABOUT = """All training rows and the test rows of Banking77. Accuracy is the mean over the seeds with its 95 % interval (wide for
three seeds). Ours are the default settings. The Trainer has our learning rate, epochs, schedule, warmup, label
smoothing, weight decay, batch size and precision, with batches of similar length, but not our higher learning rate for pooler
and head. Both use the dropout of the checkpoint. Seconds are those of training, without loading and tokenizing."""


def run(setting: Setting) -> dict[str, Any]:
    data = setting.data("banking77")
    short = {"max_steps": 3} if setting.quick else {}
    found: dict[str, list[Answer]] = {}
    workers: list[Worker] = []
    try:
        workers.append(setting.worker(
            "quality, here", "ours_whole.py", model=data["model"], max_length=128, training=short,
            data={"train": data["files"]["train"], "test": data["files"]["test"], "validation_share": 0},
        ))  # fmt: skip
        workers.append(setting.worker(
            "quality, Trainer", "transformers_whole.py", model=data["model"], max_length=128, batch_size=32,
            train=data["files"]["train"], scored=data["files"]["test"], attention_dropout=None, attention="eager",
        ))  # fmt: skip
        ours, theirs = workers
        for seed in range(setting.repeats):
            mine = ours.turn(seed=seed)
            chosen = mine.pop("chosen")
            other = theirs.turn(seed=seed, **chosen, **short)
            for worker, answer in ((ours, mine), (theirs, other)):
                found.setdefault(worker.name, []).append(answer)
                print(f"  seed {seed}  {worker.name}: {answer['accuracy']:.4f}, {answer['seconds']:.1f} s", flush=True)
    finally:
        for worker in workers:
            worker.close()
    rows = [
        {
            "library": name.removeprefix("quality, "),
            "accuracy, mean (95 % interval)": interval([answer["accuracy"] for answer in answers]),
            "seconds": spread([answer["seconds"] for answer in answers]),
            "steps": answers[0]["steps"],
            "peak memory, MB": megabytes(answers),
        }
        for name, answers in found.items()
    ]
    title = f"Banking77, batch 32, seeds 0 to {setting.repeats - 1}"
    return {"about": ABOUT, "tables": [{"title": title, "rows": rows, "digits": 4}], "notes": [f"settings: {chosen}"],
            "turns": found}  # fmt: skip

"""Speed of `strategy: features` with and without its cache of encoder outputs."""

from typing import Any

from jobs.common import Setting
from protocol import take_turns
from tables import megabytes, ratios, spread

# Title: where features are kept, and the epochs.
WAYS: dict[str, tuple[str, float]] = {
    "20 epochs, cached": ("memory", 20),
    "1.5 epochs, not cached": ("none", 1.5),
    "1.5 epochs, cached": ("memory", 1.5),
}
ABOUT = """Three trainings of the same head on the encoded rows of Banking77. Seconds include all preparation, also the
forward pass that fills the cache (in memory: no file is reused). The second and the third must reach the same accuracy."""


def run(setting: Setting) -> dict[str, Any]:
    data = setting.data("banking77_shots_0" if setting.quick else "banking77")
    files = {"train": data["files"]["train"], "test": data["files"]["test"], "validation_share": 0}
    short = {"max_steps": 3} if setting.quick else {}
    workers = []
    try:
        for title, (cache, epochs) in WAYS.items():
            strategy = {"name": "features", "cache": cache}
            training = {"epochs": epochs} | short
            workers.append(setting.worker(
                f"features, {title}", "ours_whole.py", model=data["model"], max_length=128, data=files, strategy=strategy,
                training=training,
            ))  # fmt: skip
        found = take_turns(workers, setting.repeats, lambda worker, i: {"seed": i})
    finally:
        for worker in workers:
            worker.close()
    base = [answer["whole_seconds"] for answer in found[workers[1].name]]
    rows = [
        {
            "library": name.removeprefix("features, "),
            "seconds": spread([answer["whole_seconds"] for answer in answers]),
            "library / not cached": ratios([answer["whole_seconds"] for answer in answers], base),
            "accuracy": spread([answer["accuracy"] for answer in answers]),
            "peak memory, MB": megabytes(answers),
        }
        for name, answers in found.items()
    ]
    return {"about": ABOUT, "tables": [{"title": "Banking77, the head alone", "rows": rows, "digits": 4}], "turns": found}

"""Share of the training loop outside of forward pass, backward pass and optimizer."""

from typing import Any

from jobs.common import Setting
from jobs.training import DATA
from protocol import take_turns
from tables import spread

PARTS = ("forward", "backward", "optimizer")
ABOUT = """Complete cycles of the training loop, from one optimizer step to the next, and the time in forward pass, backward pass
and optimizer (including gradient norm and clipping). `rest` is the remaining share of the cycle: batches, loss, transfer to the
device, logging, and the timing itself."""


def run(setting: Setting) -> dict[str, Any]:
    rows, turns = [], {}
    for name in setting.data_sets:
        job, data = DATA[name], setting.data(name)
        steps = setting.steps or (3 if setting.quick else job["steps"])
        with setting.worker(
            f"overhead, {name}", "ours_overhead.py", model=data["model"], train=data["files"]["train"],
            max_length=job["max_length"], batch_size=job["batch_size"],
        ) as worker:  # fmt: skip
            answers = take_turns([worker], setting.repeats, {"warmup": 2, "steps": steps})[worker.name]
        turns[worker.name] = answers
        row: dict[str, Any] = {"data": job["title"], "batch": job["batch_size"]}
        for part in PARTS:
            row[f"{part}, ms"] = spread([1000 * answer[part] / answer["steps"] for answer in answers])
        row["cycle, ms"] = spread([1000 * answer["seconds"] / answer["steps"] for answer in answers])
        rest = [answer["seconds"] - sum(answer[part] for part in PARTS) for answer in answers]
        row["rest, %"] = spread([100 * value / answer["seconds"] for value, answer in zip(rest, answers, strict=True)])
        rows.append(row)
    return {"about": ABOUT, "tables": [{"title": "A step, taken apart", "rows": rows}], "turns": turns}

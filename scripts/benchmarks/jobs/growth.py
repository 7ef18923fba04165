"""What grows with the rows and with the steps: time and memory until the first step, and the cost of going on."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, take_turns
from tables import spread

ROWS, STOPS = (10_000, 100_000, 1_000_000), (10, 10_000)
SIDES = {"here": "ours_growth.py", "datasets and Trainer": "transformers_growth.py"}
ABOUT = """Rows of made-up words (about 15 a row) in a CSV file, and a model of next to no size, so that what is measured is
everything else: seconds from the call to the end of the first optimiser step, everything imported. `first` reads and encodes;
`again` is the same call once more, which may find tokens that were kept. `memory` is by how much the peak grew above that of a
run on 1,000 rows. Going on: a run is interrupted after so many steps and called again."""


def run(setting: Setting) -> dict[str, Any]:
    sizes, stops = ((2_000,), (3,)) if setting.quick else (ROWS, STOPS)
    going = sizes[len(sizes) // 2]  # so many that the last stop is in the middle of an epoch
    turns: dict[str, list[Answer]] = {}
    grown, gone_on = [], []
    for rows in sizes:
        workers = [setting.worker(f"growth, {side}, {rows} rows", script, rows=rows) for side, script in SIDES.items()]
        try:
            found = take_turns(workers, 2, {})
            going_on = {stop: take_turns(workers, 1 if stop > 100 else setting.repeats, {"stop_at": stop})
                        for stop in (stops if rows == going else ())}  # fmt: skip
        finally:
            for worker in workers:
                worker.close()
        for worker, side in zip(workers, SIDES, strict=True):
            answers = found[worker.name]
            turns[worker.name] = answers
            grown.append({
                "side": side, "rows": rows, "first, s": answers[0]["seconds"], "again, s": answers[1]["seconds"],
                "first, microseconds a row": answers[0]["seconds"] / rows * 1e6,
                "memory, MB": round(answers[0]["grown_bytes"] / 1e6),
            })  # fmt: skip
            for stop, answered in going_on.items():
                turns[f"{worker.name}, step {stop}"] = answered[worker.name]
                seconds = spread([answer["seconds"] for answer in answered[worker.name]])
                gone_on.append({"side": side, "rows": rows, "going on at step": stop, "seconds": seconds})
    tables = [{"title": "Until the first step", "rows": grown}, {"title": "Until the first step of going on", "rows": gone_on}]
    return {"about": ABOUT, "tables": tables, "turns": turns}

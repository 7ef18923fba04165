"""Time and memory until the first step by number of rows, and time to resume by number of steps."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, take_turns
from tables import spread

ROWS, STOPS = (10_000, 100_000, 1_000_000), (10, 10_000)
LIBRARIES = {"here": "ours_growth.py", "datasets and Trainer": "transformers_growth.py"}
ABOUT = """Rows of made-up words (about 15 per row) in a CSV file and a tiny model, so that all but the model is measured:
seconds from the call to the end of the first optimizer step, without imports. `first` reads and tokenizes; `again` repeats the
call, which may use cached tokens. `memory` is the peak memory above that of a run on 1,000 rows. For resuming, a run is
interrupted after so many steps and called again."""


def run(setting: Setting) -> dict[str, Any]:
    sizes, stops = ((2_000,), (3,)) if setting.quick else (ROWS, STOPS)
    going = sizes[len(sizes) // 2]  # so many that the last stop is in the middle of an epoch
    turns: dict[str, list[Answer]] = {}
    grown, resume_rows = [], []
    for rows in sizes:
        workers = [setting.worker(f"growth, {library}, {rows} rows", script, rows=rows) for library, script in LIBRARIES.items()]
        try:
            found = take_turns(workers, 2, {})
            resumed = {stop: take_turns(workers, 1 if stop > 100 else setting.repeats, {"stop_at": stop})
                        for stop in (stops if rows == going else ())}  # fmt: skip
        finally:
            for worker in workers:
                worker.close()
        for worker, library in zip(workers, LIBRARIES, strict=True):
            answers = found[worker.name]
            turns[worker.name] = answers
            grown.append({
                "library": library, "rows": rows, "first, s": answers[0]["seconds"], "again, s": answers[1]["seconds"],
                "first, microseconds a row": answers[0]["seconds"] / rows * 1e6,
                "memory, MB": round(answers[0]["grown_bytes"] / 1e6),
            })  # fmt: skip
            for stop, answered in resumed.items():
                turns[f"{worker.name}, step {stop}"] = answered[worker.name]
                seconds = spread([answer["seconds"] for answer in answered[worker.name]])
                resume_rows.append({"library": library, "rows": rows, "resumed at step": stop, "seconds": seconds})
    tables = [
        {"title": "Until the first step", "rows": grown},
        {"title": "Until the first step of a resumed run", "rows": resume_rows},
    ]
    return {"about": ABOUT, "tables": tables, "turns": turns}

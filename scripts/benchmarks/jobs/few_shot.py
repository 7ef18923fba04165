"""Few-shot learning with ten rows per label: `strategy: few_shot` and the setfit package, on the same rows and checkpoint."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker
from tables import interval, megabytes, ratios, spread

ABOUT = """Ten rows of each intent of Banking77, drawn anew for each seed, and all test rows. Both libraries use their defaults,
but setfit makes 20 pairs of each kind per row (`num_iterations`, as in its paper, 2209.11055), since all pairs, its default,
would take hours. Seconds are those of training. setfit computes in fp32, its default. The checkpoint must be a folder that
sentence-transformers can load too."""


def run(setting: Setting) -> dict[str, Any]:
    found: dict[str, list[Answer]] = {}
    workers: list[Worker] = []
    first = setting.data("banking77_shots_0")
    short = {"max_steps": 3} if setting.quick else {}
    try:
        ours = setting.worker(
            "few_shot, here", "ours_whole.py", model=first["model"], max_length=128, strategy={"name": "few_shot"},
            training=short, data={"validation_share": 0},
        )  # fmt: skip
        workers.append(ours)
        workers.append(setting.worker("few_shot, setfit", "setfit_whole.py", peer="setfit", model=first["model"], iterations=20))
        for seed in range(setting.repeats):
            files = setting.data(f"banking77_shots_{seed}")["files"]
            for worker in workers if seed % 2 == 0 else workers[::-1]:
                if worker is ours:
                    answer = worker.turn(seed=seed, data={name: files[name] for name in ("train", "test")})
                    answer["seconds"] = answer["whole_seconds"]  # preparing the head counts for the other library too
                else:
                    answer = worker.turn(seed=seed, train=files["train"], test=files["test"], **short)
                found.setdefault(worker.name, []).append(answer)
                print(f"  seed {seed}  {worker.name}: {answer['accuracy']:.4f}, {answer['seconds']:.1f} s", flush=True)
    finally:
        for worker in workers:
            worker.close()
    base = [answer["seconds"] for answer in found[ours.name]]
    rows = [
        {
            "library": name.removeprefix("few_shot, "),
            "accuracy, mean (95 % interval)": interval([answer["accuracy"] for answer in answers]),
            "seconds": spread([answer["seconds"] for answer in answers]),
            "library / here": ratios([answer["seconds"] for answer in answers], base),
            "peak memory, MB": megabytes(answers),
        }
        for name, answers in sorted(found.items())
    ]
    title = f"{first['rows']['train']} rows, {setting.repeats} seeds"
    return {"about": ABOUT, "tables": [{"title": title, "rows": rows, "digits": 4}], "turns": found}

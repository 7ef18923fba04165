"""Training time until a target accuracy on Banking77: this project and a tuned Trainer."""

from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker
from tables import megabytes, ratios, spread

TARGET, EVERY = 0.92, 40
CHOICES = [
    {"learning_rate": rate, "label_smoothing": smoothing, "epochs": epochs}
    for rate, smoothing, epochs in ((2e-4, 0.0, 3), (2e-4, 0.0, 6), (5e-4, 0.0, 6), (2e-4, 0.1, 6))
]
ABOUT = """Seconds and optimizer steps until an evaluation on rows held out from the training rows of Banking77 (stratified,
fixed seed) first reaches the target. Evaluations happen every {every} steps; evaluating and saving do not count: a cycle with an
evaluation counts as the median cycle. Ours are the default settings, including learning rate and three epochs. With the strategy
`few_shot` the head starts as the mean vector of each label, and computing it counts. The Trainer is the fast one (bf16, batches
of similar length, fused optimizer) with linear schedule and warmup; learning rate, label smoothing and number of epochs are the
fastest of those below, tried with the first seed. All use the dropout of the checkpoint."""


def run(setting: Setting) -> dict[str, Any]:
    data = setting.data("banking77_validation")
    target, every = (0.0, 2) if setting.quick else (TARGET, EVERY)
    choices = CHOICES[:1] if setting.quick else CHOICES
    files = {name: data["files"][name] for name in ("train", "validation")}
    common = {"target": target, "evaluate_every": every}
    mine = {"model": data["model"], "max_length": 128, "data": files, "training": {"evaluate_every": every}}
    workers: list[Worker] = []
    found: dict[str, list[Answer]] = {}
    try:
        workers.append(setting.worker("time, here, defaults", "ours_whole.py", **mine))
        workers.append(setting.worker("time, here, few_shot", "ours_whole.py", strategy={"name": "few_shot"}, **mine))
        peer = setting.worker(
            "time, Trainer", "transformers_whole.py", model=data["model"], max_length=128, batch_size=32,
            train=files["train"], scored=files["validation"], attention_dropout=None, attention="eager",
        )  # fmt: skip
        workers.append(peer)
        answers = [peer.turn(seed=0, **common, **choice) for choice in choices]
        tried = [
            f"Trainer, {choice}: " + (f"{answer['steps']} steps" if answer["steps"] else f"not reached, {answer['accuracy']:.4f}")
            for choice, answer in zip(choices, answers, strict=True)
        ]
        print("  " + "\n  ".join(tried), flush=True)
        order = sorted(range(len(choices)), key=lambda i: (answers[i]["seconds"] or float("inf"), -answers[i]["accuracy"]))
        best = {peer.name: choices[order[0]]}
        for seed in range(setting.repeats):
            for worker in workers:
                answer = worker.turn(seed=seed, **common, **best.get(worker.name, {}))
                found.setdefault(worker.name, []).append(answer)
                print(f"  seed {seed}  {worker.name}: {answer}", flush=True)
    finally:
        for worker in workers:
            worker.close()
    rows = [row(name, answers, best) for name, answers in found.items()]
    theirs = [answer["seconds"] for answer in found[peer.name]]
    for one, name in zip(rows, found, strict=True):
        ours = [answer["seconds"] for answer in found[name]]
        if name != peer.name and None not in ours + theirs:
            one["Trainer / library"] = ratios(theirs, ours)
    title = f"Accuracy {target} on {data['rows']['validation']} validation rows, {setting.repeats} seeds"
    return {"about": ABOUT.format(every=every), "tables": [{"title": title, "rows": rows}], "notes": tried, "turns": found}


def row(name: str, answers: list[Answer], best: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the table; `not reached by all` if a training did not reach the target."""
    done = [answer for answer in answers if answer["seconds"] is not None]
    whole = len(done) == len(answers)
    return {
        "library": name.removeprefix("time, "),
        "seconds": spread([answer["seconds"] for answer in done]) if whole else "not reached by all",
        "steps": spread([answer["steps"] for answer in done]) if whole else "-",
        "reached": f"{len(done)} of {len(answers)}",
        "chosen": str(best.get(name, "defaults")),
        "peak memory, MB": megabytes(answers),
    }

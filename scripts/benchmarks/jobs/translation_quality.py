"""Validation loss of complete translation trainings on the same tokens: this project and transformers' Seq2SeqTrainer."""

from pathlib import Path
from typing import Any

from jobs.common import Setting
from jobs.translation_training import SETTINGS, prepare
from protocol import Answer, Worker
from tables import interval, megabytes, ratios, spread

ABOUT = """Both libraries train one epoch on all pairs and see the same tokens, in different orders, with the settings of
`translation_training` ({settings}, label smoothing 0.1, no attention dropout, bf16). `loss` is the mean cross-entropy of a target
token of the validation pairs in fp32, computed by transformers for both. New weights are random: ours with each seed, those of
the Seq2SeqTrainer (eager attention) once."""


def run(setting: Setting) -> dict[str, Any]:
    data = prepare(setting)
    short = {"max_steps": 2} if setting.quick else {}
    workers: list[Worker] = []
    found: dict[str, list[Answer]] = {}
    try:
        workers.append(setting.worker(
            "translation quality, here", "ours_translation_whole.py", model=setting.model, train=data["train"],
            columns=list(setting.translation_columns), training=SETTINGS,
        ))  # fmt: skip
        workers.append(setting.worker(
            "translation quality, Seq2SeqTrainer", "transformers_translation_whole.py", model=data["model"], rows=data["rows"],
            scored=data["scored"], attention="eager", training=SETTINGS,
        ))  # fmt: skip
        for seed in range(setting.repeats):
            for worker in workers:
                answer = worker.turn(seed=seed, **short)
                answer |= {"loss": workers[1].turn(score=answer["folder"])["loss"]}
                found.setdefault(worker.name, []).append(answer)
                print(f"  seed {seed}  {worker.name}: {answer['loss']:.4f}, {answer['seconds']:.1f} s", flush=True)
    finally:
        for worker in workers:
            worker.close()
    mine = [answer["seconds"] for answer in found[workers[0].name]]
    rows = []
    for name, answers in found.items():
        seconds = [answer["seconds"] for answer in answers]
        rows.append({
            "library": name.removeprefix("translation quality, "),
            "loss, mean (95 % interval)": interval([answer["loss"] for answer in answers]),
            "seconds": spread(seconds), "library / here": None if name == workers[0].name else ratios(seconds, mine),
            "steps": answers[0]["steps"], "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    pairs = Path(data["train"]).parent.name
    title = f"{pairs}, {data['pairs']:,} pairs once, seeds 0 to {setting.repeats - 1}"
    return {"about": ABOUT.format(settings=SETTINGS), "tables": [{"title": title, "rows": rows, "digits": 4}], "turns": found}

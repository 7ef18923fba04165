"""Whole trainings of a translation model on the same tokens: validation loss here and with transformers' Seq2SeqTrainer."""

from pathlib import Path
from typing import Any

from jobs.common import Setting
from jobs.translation_training import SETTINGS, prepare
from protocol import Answer, Worker
from tables import interval, megabytes, ratios, spread

ABOUT = """Both sides pass once over all training pairs, so each sees the same tokens, in orders of its own; settings are those of
`translation_training` ({settings}, label smoothing 0.1, no attention dropout, bf16). `loss` is the mean cross-entropy of a target
token of the validation pairs in fp32, computed by transformers alone for both. The weights that are new begin at random: here
anew with each seed, for the Seq2SeqTrainer (eager attention) as they were drawn once."""


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
            "side": name.removeprefix("translation quality, "),
            "loss, mean (95 % interval)": interval([answer["loss"] for answer in answers]),
            "seconds": spread(seconds), "side / here": None if name == workers[0].name else ratios(seconds, mine),
            "steps": answers[0]["steps"], "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    pairs = Path(data["train"]).parent.name
    title = f"{pairs}, {data['pairs']:,} pairs once, seeds 0 to {setting.repeats - 1}"
    return {"about": ABOUT.format(settings=SETTINGS), "tables": [{"title": title, "rows": rows, "digits": 4}], "turns": found}

"""Speed of translation training in tokens per second: this project and transformers' Seq2SeqTrainer."""

from pathlib import Path
from typing import Any

from jobs.common import Setting
from protocol import Answer, Worker, take_turns
from tables import megabytes, ratios, spread

SETTINGS = {"batch_size": 64, "learning_rate": 5e-4, "warmup": 200}
ABOUT = """The same encoder-decoder, vocabulary, rows and settings ({settings}, label smoothing 0.1, no attention dropout),
bf16, batches of similar length. Times are those of complete cycles from one optimizer step to the next; tokens are those of
source and target without padding. The Seq2SeqTrainer uses the faster attention, eager or sdpa. `loss` is the training loss of
the last turn. By then both have seen the same number of rows, but not the same rows."""


def run(setting: Setting) -> dict[str, Any]:
    data, columns = prepare(setting), list(setting.translation_columns)
    steps = setting.steps or (2 if setting.quick else 50)
    common = {"steps": steps, "training": SETTINGS}
    workers: list[Worker] = []
    try:
        workers.append(setting.worker(
            "translation, here", "ours_translation_training.py", model=setting.model, train=data["train"], columns=columns,
            **common,
        ))  # fmt: skip
        for kind in ("eager", "sdpa"):
            workers.append(setting.worker(
                f"translation, Seq2SeqTrainer, {kind}", "transformers_translation_training.py", model=data["model"],
                rows=data["rows"], attention=kind, **common,
            ))  # fmt: skip
        found = take_turns(workers, setting.repeats, {"warmup": 1 if setting.quick else 3, "steps": steps})
    finally:
        for worker in workers:
            worker.close()
    mine = [answer["tokens_per_second"] for answer in found[workers[0].name]]
    rows = []
    for name, answers in found.items():
        speed = [answer["tokens_per_second"] for answer in answers]
        rows.append({
            "library": name.removeprefix("translation, "), "tokens/s": spread(speed),
            "rows/s": spread([value / data["mean_tokens"] for value in speed]),
            "here / library": None if name == workers[0].name else ratios(mine, speed),
            "loss": answers[-1].get("loss"), "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    title = f"Batch {SETTINGS['batch_size']}, {data['mean_tokens']:.0f} tokens a pair"
    return {"about": ABOUT.format(settings=SETTINGS), "tables": [{"title": title, "rows": rows}], "turns": found}


def prepare(setting: Setting) -> Answer:
    """Tokenize training and validation pairs and create an untrained model."""
    train, scored = (str(Path(setting.translation or "") / f"{split}.jsonl") for split in ("train", "validation"))
    with setting.worker("prepare translation", "prepare_translation.py") as worker:
        folder = str(setting.out / "data" / "translation")
        found = worker.turn(
            model=setting.model, train=train, scored=scored, columns=list(setting.translation_columns), folder=folder
        )
    return found | {"train": train}

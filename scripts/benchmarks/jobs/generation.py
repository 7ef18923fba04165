"""Translation of test rows: this project and plain `generate`."""

import json
from pathlib import Path
from typing import Any

from jobs.common import Setting
from protocol import Worker, take_turns
from tables import megabytes, ratios, spread
from workers.plain import pairs_of

ABOUT = """One saved model and the same number of beams, without loading. Plain `generate` uses batches of 32 rows in file order,
as in the model card, with the saved model's limit on new tokens. `equal` is the share of rows with the same text. Rounding in
another precision may change texts without making them worse; BLEU shows whether it does. Exports of the run to CTranslate2
take part if there are any (`nlp-transfer export RUN --to ctranslate2`)."""


def run(setting: Setting) -> dict[str, Any]:
    import sacrebleu

    folder = Path(setting.translation_model or "")
    settings = json.loads((folder / "model" / "nlp_transfer.json").read_text(encoding="utf-8"))["settings"]
    columns = [settings["source"], settings["target"]]
    test = str(Path(setting.translation or "") / "test.jsonl") if setting.translation else _test_of(folder)
    common = {"test": test, "columns": columns, "rows": 16 if setting.quick else None, "beams": settings["beams"]}
    workers: list[Worker] = []
    try:
        for title, more in (("generate, as it comes", {}), ("generate, bf16", {"dtype": "bfloat16"})):
            workers.append(
                setting.worker(title, "transformers_generation.py", model=str(folder / "model"), batch_size=32, **common, **more)
            )
        for title, options in (("here, defaults", {}), ("here, precision auto", {"precision": "auto"})):
            workers.append(setting.worker(title, "ours_translation.py", run=str(folder), options=options, **common))
        for exported in sorted((folder / "exports").glob("ctranslate2-*")):
            workers.append(setting.worker(f"here, {exported.name}", "ours_translation.py", run=str(exported), **common))
        found = take_turns(workers, setting.repeats, {})
    finally:
        for worker in workers:
            worker.close()
    texts = {name: answers[0].pop("translations") for name, answers in found.items()}
    for answers in found.values():
        for answer in answers[1:]:
            answer.pop("translations")
    references = pairs_of(test, *columns, common["rows"])[1]
    base = workers[0].name
    rows = []
    for name, answers in found.items():
        speed = [answer["rows_per_second"] for answer in answers]
        rows.append({
            "library": name, "rows/s": spread(speed),
            "library / generate": ratios(speed, [answer["rows_per_second"] for answer in found[base]]),
            "BLEU": sacrebleu.corpus_bleu(texts[name], [references]).score,
            "equal": sum(a == b for a, b in zip(texts[name], texts[base], strict=True)) / len(references),
            "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    title = f"{len(references)} rows, {settings['beams']} beams"
    return {
        "about": ABOUT,
        "tables": [{"title": title, "rows": rows, "digits": 4}],
        "notes": [f"model: {folder}"],
        "turns": found,
    }


def _test_of(folder: Path) -> str:
    import yaml

    return str(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]["test"])

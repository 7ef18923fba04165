"""Translation of test rows: this project in torch and on CTranslate2, plain `generate`, and CTranslate2 set up by hand."""

import json
from pathlib import Path
from typing import Any

from jobs.common import Setting
from protocol import Worker, take_turns
from tables import Row, megabytes, ratios, spread
from workers.plain import pairs_of

ABOUT = """The same saved model, five beams unless the model has another number, without loading; tokenization is counted for all.
Plain `generate` uses batches of 32 rows in file order, as in a model card. `by hand` is CTranslate2's own `translate_batch`. Rows
marked `here` are `load_translator`. `equal` is the share of rows with the same text as `generate`. Rounding in another precision
may change texts without making them worse; BLEU shows whether it does. The models named by their size have random weights, so
every target has the same number of tokens, and texts mean nothing. That of NLLB has 3 + 3 of its 12 + 12 layers."""
GENERATE, HERE, BY_HAND = "generate, as it comes", "here, ", "by hand, "
SHAPES = ("marian", "nllb-3-layers")
WORDS, LIMIT = 15, 32  # words in a source, and tokens in a target, of the models with random weights
LANGUAGES = {"nllb-3-layers": {"source_language": "eng_Latn", "target_language": "deu_Latn"}}
PRECISIONS = ("fp32", "bf16", "int8")


def run(setting: Setting) -> dict[str, Any]:
    tables, turns = [], {}
    for name in (*(["trained"] if setting.translation_model else []), *(SHAPES if setting.translation else ())):
        rows, turns[name], title = _trained(setting) if name == "trained" else _shape(setting, name)
        tables.append({"title": title, "rows": rows, "digits": 4})
    return {"about": ABOUT, "tables": tables, "notes": [f"trained model: {setting.translation_model}"], "turns": turns}


def _trained(setting: Setting) -> tuple[list[Row], Any, str]:
    """Measure the run that was given."""
    folder = Path(setting.translation_model or "")
    settings = json.loads((folder / "model" / "nlp_transfer.json").read_text(encoding="utf-8"))["settings"]
    columns = [settings["source"], settings["target"]]
    test = str(Path(setting.translation or "") / "test.jsonl") if setting.translation else _test_of(folder)
    common = {"test": test, "columns": columns, "rows": 16 if setting.quick else setting.rows, "beams": settings["beams"],
              "limit": settings["max_length"]}  # fmt: skip
    check = setting.out / "data" / "check.jsonl"
    _write_pairs(check, zip(*pairs_of(test, *columns, 8), strict=True), columns)
    return *_measure(setting, "trained", folder, folder / "model", check, common, {}), f"{folder.name}, {settings['beams']} beams"


def _shape(setting: Setting, name: str) -> tuple[list[Row], Any, str]:
    """Measure a model of a common size with random weights, on sources of few words, which no library truncates or splits."""
    data, columns = Path(setting.translation or ""), list(setting.translation_columns)
    with setting.worker(f"shape-{name}", "translation_shapes.py") as worker:
        request = {"shape": name, "pairs": str(data / "train.jsonl"), "columns": columns}
        folder = Path(worker.turn(folder=str(setting.out / "shapes" / name), **request)["folder"])
    few = [pair for pair in zip(*pairs_of(str(data / "test.jsonl"), *columns), strict=True) if len(pair[0].split()) <= WORDS]
    count = 8 if setting.quick else min(setting.rows or len(few), 16 if name == "nllb-3-layers" else 64)
    test = setting.out / "data" / f"{name}.jsonl"
    _write_pairs(test, few[:count], ["source", "target"])
    check = test.with_name(f"{name}-check.jsonl")
    _write_pairs(check, few[:2], ["source", "target"])
    task = {"max_length": LIMIT, "length_ratio": 100, **LANGUAGES.get(name, {})}
    common = {"test": str(test), "columns": ["source", "target"], "beams": 5, "limit": LIMIT}
    return *_measure(setting, name, folder, folder, check, common, task), f"{name}, {count} rows, {LIMIT} tokens each, 5 beams"


def _measure(
    setting: Setting, name: str, run: Path, model: Path, check: Path, common: dict[str, Any], task: dict[str, Any]
) -> tuple[list[Row], Any]:
    exports: dict[str, str] = {}
    with setting.worker(f"exports-{name}", "ours_export.py") as worker:
        for precision in PRECISIONS:
            output = str(setting.out / "exports" / f"{name}-{precision}")
            request = {"run": str(run), "to": "ctranslate2", "precision": precision, "rows": str(check), "output": output}
            exports[precision] = worker.turn(**request, settings=task)["folder"]
    languages = {"src_lang": task["source_language"], "tgt_lang": task["target_language"]} if "source_language" in task else {}
    workers: list[Worker] = []
    try:
        for title, more in ((GENERATE, {}), ("generate, bf16", {"dtype": "bfloat16"})):
            settings = {"model": str(model), "batch_size": 32, "languages": languages, **common, **more}
            workers.append(setting.worker(title, "transformers_generation.py", **settings))
        for precision in ("fp32", "bf16"):
            options = {"precision": precision}
            settings = {"run": str(run), "task": task, "options": options, **common}
            workers.append(setting.worker(f"{HERE}torch {precision}", "ours_translation.py", **settings))
        for precision, folder in exports.items():
            workers.append(
                setting.worker(f"{HERE}ctranslate2 {precision}", "ours_translation.py", run=folder, task=task, **common)
            )
            settings = {"model": folder, "languages": languages, "prefix": [task["target_language"]] if languages else None}
            workers.append(setting.worker(f"{BY_HAND}ctranslate2 {precision}", "ctranslate2_by_hand.py", **settings, **common))
        found = take_turns(workers, setting.repeats, {})
    finally:
        for worker in workers:
            worker.close()
    return _rows(found, common), found


def _rows(found: dict[str, Any], common: dict[str, Any]) -> list[Row]:
    import sacrebleu

    texts = {name: answers[0]["translations"] for name, answers in found.items()}
    for answers in found.values():
        for answer in answers:
            answer.pop("translations")
    speeds = {name: [answer["rows_per_second"] for answer in answers] for name, answers in found.items()}
    references = pairs_of(common["test"], *common["columns"], common.get("rows"))[1]
    rows = []
    for name, answers in found.items():
        peer = name.replace(HERE, BY_HAND)
        rows.append({
            "library": name, "rows/s": spread(speeds[name]), "library / generate": ratios(speeds[name], speeds[GENERATE]),
            "library / torch bf16": ratios(speeds[name], speeds[f"{HERE}torch bf16"]),
            "library / by hand": ratios(speeds[name], speeds[peer]) if peer in speeds else None,
            "BLEU": sacrebleu.corpus_bleu(texts[name], [references]).score,
            "equal": sum(a == b for a, b in zip(texts[name], texts[GENERATE], strict=True)) / len(references),
            "peak memory, MB": megabytes(answers),
        })  # fmt: skip
    return rows


def _write_pairs(path: Path, pairs: Any, columns: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dict(zip(columns, pair, strict=True))) + "\n" for pair in pairs), encoding="utf-8")


def _test_of(folder: Path) -> str:
    import yaml

    return str(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]["test"])

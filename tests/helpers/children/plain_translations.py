"""Translates with saved runs as someone without this toolkit would, then with it, in a process of its own.

    python plain_translations.py PLAN.json OUTPUT.json

The plan lists runs with texts, as they are and with what a family wants before them; the output holds ids and translations.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer


def translate(folder: str, texts: list[str]) -> dict[str, Any]:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = target = AutoTokenizer.from_pretrained(folder)
    if (Path(folder) / "target_tokenizer").is_dir():
        target = AutoTokenizer.from_pretrained(folder, subfolder="target_tokenizer")
    with torch.inference_mode():
        ids = model.generate(**tokenizer(texts, padding=True, return_tensors="pt"))
    settings = model.generation_config.to_dict()
    return {"ids": ids.tolist(), "texts": target.batch_decode(ids, skip_special_tokens=True), "settings": settings}


def main(plan: dict[str, Any]) -> dict[str, Any]:
    assert "nlp_transfer" not in sys.modules
    found = {name: translate(f"{job['run']}/model", job["prefixed"]) for name, job in plan.items()}
    from nlp_transfer import load_translator

    for name, job in plan.items():
        found[name]["ours"] = load_translator(job["run"])(job["texts"])
    return found


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        plan = json.load(file)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(main(plan), file)

"""Loads saved runs as someone without this toolkit would, in a process of its own.

    python plain_models.py PLAN.json OUTPUT.json

The plan lists runs with texts; the output holds logits, pipeline answers, and what went wrong.
"""

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoTokenizer, pipeline


def logits(folder: str, texts: list[Any], head: str = "SequenceClassification") -> Any:
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = [list(column) for column in zip(*texts, strict=True)]
    with torch.inference_mode():
        outputs = model(**tokenizer(*columns, padding=True, return_tensors="pt"))
    if head == "QuestionAnswering":
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).tolist()
    return outputs.logits.tolist()


def probabilities(folder: str, texts: list[Any]) -> list[dict[str, float]]:
    classify = pipeline("text-classification", model=folder, top_k=None)
    inputs = [{"text": text[0], "text_pair": text[1]} if len(text) == 2 else text[0] for text in texts]
    answers = [classify(one) for one in inputs]
    flat = [answer[0] if isinstance(answer[0], list) else answer for answer in answers]
    return [{entry["label"]: entry["score"] for entry in answer} for answer in flat]


def entities(folder: str, texts: list[Any]) -> list[list[dict[str, Any]]]:
    find = pipeline("token-classification", model=folder, aggregation_strategy="first")
    return [[{name: entity[name] for name in ("entity_group", "start", "end")} for entity in find(text)] for (text,) in texts]


def main(plan: dict[str, Any]) -> dict[str, Any]:
    assert "nlp_transfer" not in sys.modules
    found: dict[str, Any] = {}
    for name, job in plan["plain"].items():
        found[name] = {"logits": logits(**job)}
        if job.get("head") != "QuestionAnswering":  # transformers 5 has no pipeline for it
            answers = entities if job.get("head") == "TokenClassification" else probabilities
            found[name]["pipeline"] = answers(job["folder"], job["texts"])
    for name, job in plan["deep"].items():
        try:
            logits(job["folder"], job["texts"])
            found[name] = {"error": None}
        except ValueError as error:
            found[name] = {"error": str(error)}
        _, report = AutoModel.from_pretrained(job["folder"] + "/encoder", output_loading_info=True)
        found[name]["encoder_missing"] = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    import nlp_transfer  # noqa: F401  from here on the Auto classes know the toolkit's own head

    for name, job in plan["deep"].items():
        found[name] |= {"logits": logits(job["folder"], job["texts"]), "pipeline": probabilities(job["folder"], job["texts"])}
    return found


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    with open(sys.argv[2], "w") as file:
        json.dump(main(plan), file)

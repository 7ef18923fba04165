"""Questions on tiny contexts: rows, files in SQuAD's format, and predictions as transformers' example script makes them."""

from typing import Any

import numpy as np
import torch

from tests.builders import answer_in, rows, sentiment_rows

QA = {"name": "question_answering", "max_length": 24, "stride": 4}


def questions(count: int, unanswerable: bool = True, sentences: int = 3) -> list[dict[str, Any]]:
    """Rows whose context has several windows; every fifth question has no answer, others have one or two."""
    texts = [text for text, _ in sentiment_rows(count * sentences)]
    made = []
    for i in range(count):
        parts = texts[i * sentences : (i + 1) * sentences]
        before = len("".join(f"{part} " for part in parts[: i % sentences]))
        word, start = answer_in(parts[i % sentences])
        answers = {"text": [word, word][: 1 + i % 2], "answer_start": [before + start, before + start][: 1 + i % 2]}
        if unanswerable and i % 5 == 0:
            answers = {"text": [], "answer_start": []}
        made.append({"question": f"was the film {i % 3 * 'very '}good", "context": " ".join(parts), "answers": answers})
    return made


def columns(made: list[dict[str, Any]]) -> Any:
    return rows({name: [row[name] for row in made] for name in made[0]})


def squad(made: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows in SQuAD's format."""

    def question(number: int, row: dict[str, Any]) -> dict[str, Any]:
        answers = [dict(zip(("text", "answer_start"), pair, strict=True)) for pair in zip(*row["answers"].values(), strict=True)]
        return {"id": str(number), "question": row["question"], "answers": answers, "is_impossible": not answers}

    paragraphs = [{"context": row["context"], "qas": [question(i, row)]} for i, row in enumerate(made)]
    return {"version": "v2.0", "data": [{"title": "films", "paragraphs": paragraphs}]}


def by_example(model: Any, tokenizer: Any, made: list[dict[str, Any]], threshold: float, longest: int = 30) -> list[str]:
    """Predict as transformers' example script does: the n-best list of each window, merged; one row after the other."""
    predictions = []
    for row in made:
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=24, stride=4, padding="max_length",
            return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt",
        )  # fmt: skip
        offsets, _ = encoded.pop("offset_mapping").tolist(), encoded.pop("overflow_to_sample_mapping")
        with torch.inference_mode():
            outputs = model.eval()(**encoded)
        candidates, lowest = [], float("inf")
        for window, (starts, ends) in enumerate(zip(outputs.start_logits.numpy(), outputs.end_logits.numpy(), strict=True)):
            lowest = min(lowest, float(starts[0] + ends[0]))
            sides = encoded.sequence_ids(window)
            for i in np.argsort(-starts)[:20]:
                for j in np.argsort(-ends)[:20]:
                    if sides[i] == 1 and sides[j] == 1 and i <= j < i + longest:
                        candidates.append((float(starts[i] + ends[j]), offsets[window][i][0], offsets[window][j][1]))
        score, first, last = max(candidates)
        predictions.append("" if lowest - score > threshold else row["context"][first:last])
    return predictions

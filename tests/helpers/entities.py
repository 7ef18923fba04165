"""Sentences with entities, as words with tags and as texts with spans."""

from typing import Any

from tests.builders import BAD, GOOD, sentiment_rows

SECOND = {"good": "river", "bad": "hill"}  # the second word of an entity


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in both forms: a word of a sentiment is an entity of the type good or bad, in every other row with a second word."""
    rows = []
    for i, (sentence, _) in enumerate(sentiment_rows(count, seed)):
        words, tags, spans = [], [], []
        for word in sentence.split():
            label = "good" if word in GOOD else "bad" if word in BAD else None
            if label is None and word not in SECOND.values():
                words, tags = [*words, word], [*tags, "O"]
            elif label is not None:
                start, entity = len(" ".join([*words, ""])), [word, SECOND[label]][: 1 + i % 2]
                words, tags = [*words, *entity], [*tags, f"B-{label}", f"I-{label}"][: len(words) + len(entity)]
                spans.append({"start": start, "end": start + len(" ".join(entity)), "label": label})
        rows.append({"tokens": words, "tags": tags, "text": " ".join(words), "spans": spans})
    return rows

"""Sentences with entities, as words with tags and as texts with spans."""

from typing import Any

from tests.builders import BAD, GOOD, sentiment_rows


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in both forms: words of a sentiment are entities of the types good and bad, with the word that follows."""
    rows = []
    for text, _ in sentiment_rows(count, seed):
        words = text.split()
        kinds = ["good" if word in GOOD else "bad" if word in BAD else "" for word in words]
        tags = [
            f"B-{kind}" if kind else f"I-{before}" if before else "O" for kind, before in zip(kinds, ["", *kinds], strict=False)
        ]
        starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
        spans = []
        for i, kind in enumerate(kinds):
            if kind:
                last = i + 1 if i + 1 < len(words) and not kinds[i + 1] else i
                spans.append({"start": starts[i], "end": starts[last] + len(words[last]), "label": kind})
        rows.append({"tokens": words, "tags": tags, "text": text, "spans": spans})
    return rows

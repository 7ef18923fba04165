"""Explanations as one self-contained HTML file, and on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nlp_transfer.inference.explanation import METHOD, Explanation
from nlp_transfer.report.rendering import render_html
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import number, shown, text_table

TOP_WORDS = 10  # words that are listed with their scores
FAINT = 0.08  # words with a smaller share of the largest score get no colour
FOR, AGAINST = (46, 160, 67), (218, 54, 51)  # red, green and blue


def write_explanations(path: Path, explanations: Sequence[Explanation], model: str = "") -> None:
    """Write explanations to a self-contained HTML file, which makes no network requests."""
    pages = [
        {
            "texts": [(name, _strengths(explanation, name)) for name in explanation.texts],
            "prediction": _prediction(explanation), "explained": explanation.unit, "notes": explanation.notes(),
            "words": [(word.text, f"{word.score:+.3f}") for word in explanation.top_words(TOP_WORDS)],
            "neighbors": [
                (f"{row.similarity:.3f}", row.where, list(row.columns.values())) for row in explanation.neighbors or ()
            ],
            "columns": list(explanation.neighbors[0].columns) if explanation.neighbors else [],
        }
        for explanation in explanations
    ]  # fmt: skip
    page = render_html("explanation.html", explanations=pages, model=model, method=METHOD)
    write_bytes(path, page.encode(errors="replace"))  # command-line arguments may contain bytes that are not UTF-8


def _strengths(explanation: Explanation, column: str) -> list[tuple[str, str, float, str]]:
    """Return the parts of a text, each with its kind (`for`, `against` or empty), its opacity and its score."""
    parts = []
    for text, score in explanation.segments(column):
        strength = 0.0 if score is None else abs(score) / explanation.largest_score
        kind = "" if score is None or strength < FAINT else "for" if score > 0 else "against"
        parts.append((text, kind, round(0.65 * strength, 2), "" if score is None else f"{score:+.3f}"))
    return parts


def _prediction(explanation: Explanation) -> str:
    prediction = explanation.prediction["prediction"]
    probability = explanation.prediction.get("probability")
    labels = ", ".join(map(str, prediction)) or "none" if isinstance(prediction, list) else prediction
    text = number(labels) if isinstance(labels, float) else str(labels)
    return f"{text} ({probability:.4f})" if isinstance(probability, float) else text


def print_explanations(explanations: Sequence[Explanation]) -> None:
    """Print explanations to standard output: coloured words, the words with the largest scores, and the notes."""
    console = Console(highlight=False, soft_wrap=True)
    for i, explanation in enumerate(explanations):
        if i:
            console.print()
        console.print(Text(shown(f"prediction: {_prediction(explanation)}; explained: {explanation.unit}"), style="bold"))
        for name in explanation.texts:
            line = Text(f"{shown(name)}: " if len(explanation.texts) > 1 else "")
            for part, kind, opacity, _ in _strengths(explanation, name):
                color = [round(255 + (c - 255) * opacity / 0.65) for c in (FOR if kind == "for" else AGAINST)]
                line.append(shown(part), style=f"black on rgb({color[0]},{color[1]},{color[2]})" if kind else "")
            console.print(line)
        words = [(word.text, f"{word.score:+.3f}") for word in explanation.top_words(TOP_WORDS)]
        console.print(text_table("words with the largest scores", ["word", "score"], words))
        for note in explanation.notes():
            console.print(Text(shown(note)))
        if explanation.neighbors:
            cells = [[f"{row.similarity:.3f}", row.where, *map(str, row.columns.values())] for row in explanation.neighbors]
            heads = ["similarity", "row", *explanation.neighbors[0].columns]
            console.print(text_table("most similar training rows", heads, cells, console.width))

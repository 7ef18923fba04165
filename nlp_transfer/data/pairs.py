"""Checks of parallel texts: sides that are missing, the same, or of lengths that do not belong together."""

from nlp_transfer.errors import Problems
from nlp_transfer.sources.rows import Rows

MOST_ALIKE = 0.5  # a share of identical sides above this is a mistake in the columns
MOST_RATIO = 3.0  # one side this many times as long as the other is suspicious
LEAST_CHARACTERS = 30  # ... unless both are short
SHOWN = 3


def check_sides(rows: Rows, source: str, target: str | None, problems: Problems) -> None:
    """Adds every cell that is no text or empty; and a source and a target that are mostly the same text."""
    for name in filter(None, (source, target)):
        for row, cell in enumerate(rows.columns[name]):
            if not isinstance(cell, str):
                found = "nothing" if cell is None else f"{cell!r} ({type(cell).__name__})"
                problems.add(f"{rows.where(row)}, column {name!r}: found {found}; allowed: text")
            elif not cell.strip():
                problems.add(f"{rows.where(row)}, column {name!r}: this side is empty; allowed: text, or remove the pair")
    if target is None or not len(rows):
        return
    alike = _alike(rows, source, target)
    if len(alike) > MOST_ALIKE * len(rows):
        problems.add(
            f"{rows.where(alike[0])}: source and target are the same text here and in {len(alike)} of {len(rows)} pairs; "
            f"allowed: a translation (columns {source!r} and {target!r}; is one of them the wrong file or column?)"
        )


def describe_pairs(rows: Rows, source: str, target: str) -> list[str]:
    """What a user wants to know of pairs before training: their sizes, and warnings about those that look wrong."""
    sides = [[str(cell).strip() for cell in rows.columns[name]] for name in (source, target)]
    lengths = [[len(text) for text in side] for side in sides]
    means = [sum(side) / max(1, len(side)) for side in lengths]
    lines = [f"{len(rows)} pairs, {means[0]:.0f} characters a source and {means[1]:.0f} a target on average"]
    usual = means[1] / max(1.0, means[0])  # scripts differ: Chinese says in one character what takes English four
    odd = [
        row
        for row, (one, other) in enumerate(zip(*lengths, strict=True))
        if max(one, other) >= LEAST_CHARACTERS and not usual / MOST_RATIO <= max(1, other) / max(1, one) <= usual * MOST_RATIO
    ]
    twice = len(rows) - len(set(zip(*sides, strict=True)))
    for what, found in (("have the same text on both sides", _alike(rows, source, target)), ("differ oddly in length", odd)):
        if found:
            places = "; ".join(rows.where(row) for row in found[:SHOWN])
            lines.append(f"warning: {len(found)} pairs {what}: {places}{' ...' if len(found) > SHOWN else ''}")
    if twice:
        lines.append(f"{twice} pairs stand in it more than once")
    return lines


def _alike(rows: Rows, source: str, target: str) -> list[int]:
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return [row for row, (one, other) in enumerate(pairs) if str(one).strip() == str(other).strip()]

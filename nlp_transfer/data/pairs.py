"""Checks of parallel texts: sides that are missing, the same, or of lengths that do not belong together."""

from statistics import median

import numpy as np

from nlp_transfer.config import with_type
from nlp_transfer.errors import Problems
from nlp_transfer.sources.rows import Rows
from nlp_transfer.sources.texts import fingerprints, normalized

MOST_ALIKE = 0.5  # a share of identical sides above this is a mistake in the columns
FEW = 100  # ... of fewer pairs (the last ones of a long file, say) all have to be, and there must be as many as LEAST_PAIRS
LEAST_PAIRS = 8
MOST_RATIO = 3.0  # one side this many times as long as the other is suspicious
LEAST_CHARACTERS = 30  # ... unless both are short
SHOWN = 3


def draw_rows(rows: int, most: int) -> np.ndarray:
    """Row indices (int64, ascending): all of so many rows, or `most` of them, drawn at random but always the same.

    The first rows of a file that is sorted, or every n-th of one with a cycle, would not stand for the others.
    """
    return np.sort(np.random.default_rng(0).choice(rows, min(rows, most), replace=False)).astype(np.int64)


def check_sides(rows: Rows, source: str, target: str | None, problems: Problems) -> None:
    """Adds every cell that is no text or empty; and a source and a target that are mostly the same text."""
    for name in filter(None, (source, target)):
        for row, cell in enumerate(rows.columns[name]):
            if not isinstance(cell, str):
                found = "nothing" if cell is None else with_type(cell)
                problems.add(f"{rows.where(row)}, column {name!r}: found {found}; allowed: text")
            elif not cell.strip():
                problems.add(f"{rows.where(row)}, column {name!r}: this side is empty; allowed: text, or remove the pair")
    if target is None or len(rows) < LEAST_PAIRS:
        return
    alike = _alike(rows, source, target)
    if len(alike) > MOST_ALIKE * len(rows) and (len(rows) >= FEW or len(alike) == len(rows)):
        problems.add(
            f"{rows.where(alike[0])}: source and target are the same text here and in {len(alike)} of {len(rows)} pairs; "
            f"allowed: a translation (columns {source!r} and {target!r}; is one of them the wrong file or column?)"
        )


def describe_pairs(rows: Rows, source: str, target: str) -> list[str]:
    """What a user wants to know of pairs before training: their sizes, and warnings about those that look wrong."""
    lengths = [[len(str(cell).strip()) for cell in rows.columns[name]] for name in (source, target)]
    means = [sum(side) / max(1, len(side)) for side in lengths]
    lines = [f"{len(rows):,} pairs, {means[0]:.0f} characters a source and {means[1]:.0f} a target on average"]
    ratios = [max(1, other) / max(1, one) for one, other in zip(*lengths, strict=True)]
    usual = median(ratios or [1.0])  # scripts differ: Chinese says in one character what takes English four
    odd = [
        row
        for row, ratio in enumerate(ratios)
        if max(lengths[0][row], lengths[1][row]) >= LEAST_CHARACTERS and not usual / MOST_RATIO <= ratio <= usual * MOST_RATIO
    ]
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    twice = len(rows) - len(np.unique(fingerprints("\0".join(normalized(str(cell)) for cell in pair) for pair in pairs)))
    for what, found in (("have the same text on both sides", _alike(rows, source, target)), ("differ oddly in length", odd)):
        if found:
            places = "; ".join(rows.where(row) for row in found[:SHOWN])
            lines.append(f"warning: {len(found):,} of {len(rows):,} pairs {what}: {places}{' ...' if len(found) > SHOWN else ''}")
    if twice:
        lines.append(f"{twice:,} of {len(rows):,} pairs repeat another one")
    return lines


def _alike(rows: Rows, source: str, target: str) -> list[int]:
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return [row for row, (one, other) in enumerate(pairs) if _text(one) == _text(other) != ""]


def _text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else ""

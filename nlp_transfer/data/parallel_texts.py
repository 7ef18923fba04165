"""Checks of parallel texts: sides that are missing, the same, or of lengths that do not belong together."""

from collections.abc import Sequence

import numpy as np

from nlp_transfer.data.sources.in_memory import plain_cell
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
from nlp_transfer.utils.errors import BadRow, Problems, with_type

MOST_ALIKE = 0.5  # a share of identical sides above this is a mistake in the columns
FEW = 100  # ... of fewer pairs (the last ones of a long file, say) all have to be, and there must be as many as LEAST_PAIRS
LEAST_PAIRS = 8
MOST_RATIO = 3.0  # one side this many times as long as the other is suspicious
LEAST_CHARACTERS = 30  # ... unless both are short
SHOWN = 3
EMPTY_SIDE = "with an empty side"  # a kind of bad row
FILTERS = {
    "empty": ("a side is empty", EMPTY_SIDE),
    "copies": ("source and target are the same text", "with the same text on both sides"),
    "duplicates": ("an earlier pair has the same texts", "equal to an earlier pair"),
    "length_ratio": (
        f"one side is more than {MOST_RATIO:g} times as long as usual for the other, in characters",
        "with sides of oddly different lengths",
    ),
}
"""By name in `data.filter`: reason and kind of the rows that it leaves out, in the order in which they are found."""


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
                is_missing = plain_cell(cell) is None
                shown = "nothing" if is_missing else with_type(cell)
                kind = EMPTY_SIDE if is_missing else "with a side that is no text"
                problems.add_row(row, rows.bad(row, name, f"found {shown}; allowed: text", kind))
            elif not cell.strip():
                reason = "this side is empty; allowed: text, or remove the pair"
                problems.add_row(row, rows.bad(row, name, reason, EMPTY_SIDE))
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
    lengths = _lengths(rows, source, target)
    means = lengths.sum(0) / max(1, len(rows))
    lines = [f"{len(rows):,} pairs, {means[0]:.0f} characters a source and {means[1]:.0f} a target on average"]
    odd = np.flatnonzero(_is_odd(lengths))
    twice = len(rows) - len(np.unique(_pair_keys(rows, source, target)))
    for what, found in (("have the same text on both sides", _alike(rows, source, target)), ("differ oddly in length", odd)):
        if len(found):
            places = "; ".join(rows.where(int(row)) for row in found[:SHOWN])
            lines.append(f"warning: {len(found):,} of {len(rows):,} pairs {what}: {places}{' ...' if len(found) > SHOWN else ''}")
    if twice:
        lines.append(f"{twice:,} of {len(rows):,} pairs repeat another one")
    return lines


def _is_odd(lengths: np.ndarray) -> np.ndarray:
    """bool of shape (pairs,): where one side is too long for the other.

    The ratio of characters is compared with the median, since scripts differ: Chinese says in one character what takes English
    four. The limit is the default of OpusFilter's `LengthRatioFilter` (Aulamo et al. 2020, aclanthology 2020.acl-demos.20).

    Args:
        lengths: characters of source and target, int64 of shape (pairs, 2).
    """
    ratios = np.maximum(1, lengths[:, 1]) / np.maximum(1, lengths[:, 0])
    usual = float(np.median(ratios)) if len(ratios) else 1.0
    is_long = lengths.max(1, initial=0) >= LEAST_CHARACTERS
    return np.asarray(is_long & ((ratios > usual * MOST_RATIO) | (ratios < usual / MOST_RATIO)))


def _lengths(rows: Rows, source: str, target: str) -> np.ndarray:
    """Characters of both sides, int64 of shape (rows, 2)."""
    sides = [np.fromiter((len(_text(cell)) for cell in rows.columns[name]), np.int64, len(rows)) for name in (source, target)]
    return np.stack(sides, 1)


def _pair_keys(rows: Rows, source: str, target: str) -> np.ndarray:
    """int64 of shape (rows,), equal where both sides are the same texts or near copies."""
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return fingerprints("\0".join(normalized(_text(cell)) for cell in pair) for pair in pairs)


def filter_pairs(rows: Rows, source: str, target: str, names: Sequence[str]) -> dict[int, BadRow]:
    """The pairs that the filters called `names` leave out, by index; those with a cell that is no text stay for `check_sides`.

    Lengths are compared with the median of the pairs which the other filters keep.
    """
    bad: dict[int, BadRow] = {}
    lengths = _lengths(rows, source, target)
    kept = np.flatnonzero(lengths.min(1, initial=1))

    def leave_out(name: str, indices: np.ndarray, column: str = target) -> None:
        reason, kind = FILTERS[name]
        bad.update({row: rows.bad(row, column, reason, f"{kind} (data.filter: {name})") for row in indices.tolist()})

    if "empty" in names:
        for column in (target, source):
            empty = (cell is None or (isinstance(cell, str) and not cell.strip()) for cell in rows.columns[column])
            leave_out("empty", np.flatnonzero(np.fromiter(empty, bool, len(rows))), column)
    if "copies" in names:
        sides = (fingerprints(normalized(_text(cell)) for cell in rows.columns[name]) for name in (source, target))
        same = np.equal(*sides)[kept]
        leave_out("copies", kept[same])
        kept = kept[~same]
    if "duplicates" in names:
        first = np.sort(np.unique(_pair_keys(rows, source, target)[kept], return_index=True)[1])
        leave_out("duplicates", np.delete(kept, first))
        kept = kept[first]
    if "length_ratio" in names:
        leave_out("length_ratio", kept[_is_odd(lengths[kept])])
    return bad


def _alike(rows: Rows, source: str, target: str) -> list[int]:
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return [row for row, (one, other) in enumerate(pairs) if _text(one) == _text(other) != ""]


def _text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else ""

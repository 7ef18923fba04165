"""Check and filter pairs of texts: empty sides, identical sides, duplicates and unusual length ratios."""

from collections.abc import Sequence

import numpy as np

from nlp_transfer.data.sources.in_memory import plain_cell
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
from nlp_transfer.utils.errors import BadRow, Problems, with_type

MAX_IDENTICAL = 0.5  # a larger share of pairs with identical sides is an error
FEW_PAIRS = 100  # with fewer pairs, identical sides are an error only if all pairs have them
MIN_PAIRS = 8  # fewer pairs are not checked for identical sides
MAX_RATIO = 3.0  # length ratio of the sides relative to the median; a larger one is unusual
MIN_CHARACTERS = 30  # the ratio is ignored if both sides are shorter
SHOWN = 3  # pairs named in a warning
EMPTY_SIDE = "with an empty side"  # kind of bad rows
FILTERS = {
    "empty": ("a side is empty", EMPTY_SIDE),
    "copies": ("source and target are the same text", "with the same text on both sides"),
    "duplicates": ("an earlier pair has the same texts", "equal to an earlier pair"),
    "length_ratio": (
        f"relative to the other side, one side has more than {MAX_RATIO:g} times as many characters as usual",
        "with an unusual ratio of lengths",
    ),
}
"""Reason and kind of the rows that each filter of `data.filter` removes, in the order in which the filters are applied."""


def draw_rows(rows: int, limit: int) -> np.ndarray:
    """Sample at most `limit` of `rows` row indices (int64, ascending) with a fixed seed.

    The first rows of a sorted file, or every n-th row of a periodic one, would not be representative.
    """
    return np.sort(np.random.default_rng(0).choice(rows, min(rows, limit), replace=False)).astype(np.int64)


def check_sides(rows: Rows, names: Sequence[str], problems: Problems) -> None:
    """Report cells of these columns that are empty or not text."""
    for name in names:
        for row, cell in enumerate(rows.columns[name]):
            if not isinstance(cell, str):
                is_missing = plain_cell(cell) is None
                shown = "nothing" if is_missing else with_type(cell)
                kind = EMPTY_SIDE if is_missing else "with a side that is not text"
                problems.add_row(row, rows.bad(row, name, f"found {shown}; allowed: text", kind))
            elif not cell.strip():
                reason = "this side is empty; allowed: text (or remove the pair)"
                problems.add_row(row, rows.bad(row, name, reason, EMPTY_SIDE))


def check_not_copies(rows: Rows, source: str, target: str, problems: Problems) -> None:
    """Report that most sources are identical to their targets."""
    if len(rows) < MIN_PAIRS:
        return
    identical = _identical(rows, source, target)
    if len(identical) > MAX_IDENTICAL * len(rows) and (len(rows) >= FEW_PAIRS or len(identical) == len(rows)):
        problems.add(
            f"{rows.where(identical[0])}: source and target are the same text in this and in total {len(identical)} of "
            f"{len(rows)} pairs; allowed: a translation (is one of the columns {source!r} and {target!r} the wrong "
            "file or column?)"
        )


def describe_pairs(rows: Rows, source: str, target: str, parallel: bool = True) -> list[str]:
    """Return lines to print before training: mean lengths, and warnings about suspicious pairs.

    Args:
        parallel: Whether both sides say the same, so that equal sides and unusual ratios of lengths are suspicious.
    """
    lengths = _lengths(rows, source, target)
    means = lengths.sum(0) / max(1, len(rows))
    lines = [f"{len(rows):,} pairs, {means[0]:.0f} characters a source and {means[1]:.0f} a target on average"]
    duplicates = len(rows) - len(np.unique(_pair_keys(rows, source, target)))
    checks: dict[str, Sequence[int]] = {}
    if parallel:
        checks["have the same text on both sides"] = _identical(rows, source, target)
        checks["have an unusual ratio of lengths"] = np.flatnonzero(_has_unusual_ratio(lengths)).tolist()
    for description, suspicious in checks.items():
        if len(suspicious):
            places = "; ".join(rows.where(row) for row in suspicious[:SHOWN])
            more = " ..." if len(suspicious) > SHOWN else ""
            lines.append(f"warning: {len(suspicious):,} of {len(rows):,} pairs {description}: {places}{more}")
    if duplicates:
        lines.append(f"{duplicates:,} of {len(rows):,} pairs repeat another one")
    return lines


def _has_unusual_ratio(lengths: np.ndarray) -> np.ndarray:
    """Return a mask of pairs with an unusual length ratio, bool of shape (pairs,).

    The ratio of characters is compared with the median ratio, since scripts differ: one Chinese character corresponds to about
    four English ones. The limit is the default of OpusFilter's `LengthRatioFilter` (Aulamo et al. 2020, 2020.acl-demos.20).

    Args:
        lengths: See `_lengths`.
    """
    ratios = np.maximum(1, lengths[:, 1]) / np.maximum(1, lengths[:, 0])
    usual = float(np.median(ratios)) if len(ratios) else 1.0
    is_long = lengths.max(1, initial=0) >= MIN_CHARACTERS
    return np.asarray(is_long & ((ratios > usual * MAX_RATIO) | (ratios < usual / MAX_RATIO)))


def _lengths(rows: Rows, source: str, target: str) -> np.ndarray:
    """Return the number of characters of source and target, int64 of shape (rows, 2)."""
    lengths = [np.fromiter((len(_text(cell)) for cell in rows.columns[name]), np.int64, len(rows)) for name in (source, target)]
    return np.stack(lengths, 1)


def _pair_keys(rows: Rows, source: str, target: str) -> np.ndarray:
    """Return a key for each pair, equal for pairs with equal normalized texts; int64 of shape (rows,)."""
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return fingerprints("\0".join(normalized(_text(cell)) for cell in pair) for pair in pairs)


def filter_pairs(rows: Rows, source: str, target: str, names: Sequence[str]) -> dict[int, BadRow]:
    """Return the pairs that the named filters remove, by row index. Cells that are not text are ignored.

    `length_ratio` uses the median of the pairs that pass the other filters.
    """
    bad: dict[int, BadRow] = {}
    lengths = _lengths(rows, source, target)
    remaining = np.flatnonzero(lengths.min(1, initial=1))

    def remove(name: str, indices: np.ndarray, column: str = target) -> None:
        reason, kind = FILTERS[name]
        bad.update({row: rows.bad(row, column, reason, f"{kind} (data.filter: {name})") for row in indices.tolist()})

    if "empty" in names:
        for column in (target, source):
            empty = (cell is None or (isinstance(cell, str) and not cell.strip()) for cell in rows.columns[column])
            remove("empty", np.flatnonzero(np.fromiter(empty, bool, len(rows))), column)
    if "copies" in names:
        keys = (fingerprints(normalized(_text(cell)) for cell in rows.columns[name]) for name in (source, target))
        identical = np.equal(*keys)[remaining]
        remove("copies", remaining[identical])
        remaining = remaining[~identical]
    if "duplicates" in names:
        first = np.sort(np.unique(_pair_keys(rows, source, target)[remaining], return_index=True)[1])
        remove("duplicates", np.delete(remaining, first))
        remaining = remaining[first]
    if "length_ratio" in names:
        remove("length_ratio", remaining[_has_unusual_ratio(lengths[remaining])])
    return bad


def _identical(rows: Rows, source: str, target: str) -> list[int]:
    """Return the indices of pairs with the same text on both sides."""
    pairs = zip(rows.columns[source], rows.columns[target], strict=True)
    return [row for row, (one, other) in enumerate(pairs) if _text(one) == _text(other) != ""]


def _text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else ""

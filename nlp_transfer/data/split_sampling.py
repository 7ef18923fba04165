"""Draw stratified, seeded samples and splits of rows, and count repeated inputs. Rows with equal inputs are kept together."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.sources.text_columns import fingerprints, normalized


def draw_shots(strata: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Sample up to `shots` rows of each stratum.

    Samples are nested: with the same seed, a sample of 8 is part of a sample of 16.

    Args:
        strata: Stratum of each row, int of shape (rows,).

    Returns:
        Row indices, int64, ascending.
    """
    drawn = [np.zeros(0, np.int64)]
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        generator = np.random.default_rng([seed, int(stratum) + 1])  # -1 is the stratum of rows without a label
        drawn.append(generator.permutation(rows)[:shots])
    return np.sort(np.concatenate(drawn))


def describe_repeats(keys: dict[str, np.ndarray], exact: Callable[[str], np.ndarray] | None = None) -> list[str]:
    """Return notes on duplicate inputs within a split, and warnings on inputs that occur in two splits.

    Args:
        keys: Keys of each split; see `input_keys`.
        exact: Returns the keys of the inputs of a split without normalization. None: do not count near duplicates.
    """
    notes = []
    for role, split_keys in keys.items():
        if repeated := _repeats(split_keys):
            near = repeated - _repeats(exact(role)) if exact else 0
            notes.append(f"{role}: {repeated:,} of {len(split_keys):,} rows repeat the input of another row{_near(near)}")
    roles = list(keys)
    for i, first in enumerate(roles):
        for second in roles[i + 1 :]:
            if leaked := int(np.isin(keys[second], keys[first]).sum()):
                near = leaked - int(np.isin(exact(second), exact(first)).sum()) if exact else 0
                notes.append(
                    f"warning: {leaked} of {len(keys[second])} rows of {second} have an input that also occurs in {first}"
                    f"{_near(near)}; metrics on {second} will be too high"
                )
    return notes


def _repeats(keys: np.ndarray) -> int:
    return len(keys) - len(np.unique(keys))


def _near(count: int) -> str:
    return f" ({count} of them with another case, spacing or Unicode form)" if count else ""


def split_off(
    rows: Rows, share: float, strata: np.ndarray, keys: np.ndarray, group: str | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split off a stratified share of the rows.

    Rows with the same key, or the same normalized value in the column `group`, form a unit that is never divided. In each
    stratum, the units are visited in random order, and a unit is split off if this brings the stratum closer to `share`. At
    least one unit of each stratum remains.

    Args:
        strata: Stratum of each row, int of shape (rows,).
        keys: Keys of the inputs, int64 of shape (rows,).

    Returns:
        Indices (int64, ascending) of the remaining rows and of the split-off rows.
    """
    units = _Units(rows, strata, keys, group)
    generator = np.random.default_rng(seed)
    selected: list[np.ndarray] = [np.zeros(0, np.int64)]
    remainder = 0.0  # rounding error, carried over so that many tiny classes contribute their share in total
    for stratum in units.by_stratum:
        sizes = units.sizes[stratum].tolist()
        target = sum(sizes) * share + remainder
        size = 0
        for position in generator.permutation(len(stratum))[:-1].tolist():
            if abs(size + sizes[position] - target) < abs(size - target):
                selected.append(units.rows(int(stratum[position])))
                size += sizes[position]
        remainder = target - size
    is_aside = np.zeros(len(rows), bool)
    is_aside[np.concatenate(selected)] = True
    return np.flatnonzero(~is_aside), np.flatnonzero(is_aside)


def draw_folds(rows: Rows, folds: int, strata: np.ndarray, keys: np.ndarray, group: str | None, seed: int) -> np.ndarray:
    """Divide the rows into stratified folds of nearly equal size, without dividing a unit (see `split_off`).

    In each stratum, the units are visited in random order, the larger ones first. Each goes to the fold with the fewest rows of
    the stratum; of several such folds, to the smallest.

    Args:
        folds: Number of folds.
        strata: Stratum of each row, int of shape (rows,).
        keys: Keys of the inputs, int64 of shape (rows,).

    Returns:
        The fold of each row, int64 of shape (rows,), from 0 to `folds` - 1. A fold is empty if there are fewer units than folds.
    """
    units = _Units(rows, strata, keys, group)
    generator = np.random.default_rng(seed)
    fold_of = np.zeros(len(rows), np.int64)
    totals = np.zeros(folds, np.int64)
    for stratum in units.by_stratum:
        visited = generator.permutation(stratum)
        sizes = np.zeros(folds, np.int64)
        for unit in visited[np.argsort(-units.sizes[visited], kind="stable")].tolist():
            fold = np.lexsort((totals, sizes))[0]
            fold_of[units.rows(unit)] = fold
            sizes[fold] += units.sizes[unit]
            totals[fold] += units.sizes[unit]
    return fold_of


class _Units:
    """The units of the rows, which are never divided.

    Attributes:
        sizes: Number of rows of each unit, int64.
        by_stratum: The units of each stratum. A unit belongs to the stratum of most of its rows.
    """

    def __init__(self, rows: Rows, strata: np.ndarray, keys: np.ndarray, group: str | None) -> None:
        unit_of = _unit_numbers(keys, rows.columns[group] if group else None)
        # Arrays instead of a list for each unit, since most units of a large corpus are single rows.
        order = np.argsort(unit_of, kind="stable")
        starts = np.flatnonzero(np.diff(unit_of[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        by_place = np.argsort(order[starts])  # units in the order of their first rows
        self._order, self._starts, self._ends = order, starts[by_place], ends[by_place]
        self.sizes = self._ends - self._starts
        stratum_of = strata[order[self._starts]]
        for unit in np.flatnonzero(self.sizes > 1):
            stratum_of[unit] = Counter(strata[self.rows(int(unit))].tolist()).most_common(1)[0][0]
        grouped = np.argsort(stratum_of, kind="stable")
        self.by_stratum = np.split(grouped, np.flatnonzero(np.diff(stratum_of[grouped])) + 1)

    def rows(self, unit: int) -> np.ndarray:
        """Return the indices of the rows of a unit, int64."""
        return np.asarray(self._order[self._starts[unit] : self._ends[unit]])


def _unit_numbers(keys: np.ndarray, groups: Sequence[object] | None) -> np.ndarray:
    """Return the unit of each row, int64 of shape (rows,). Rows that are connected by keys or groups are in one unit."""
    by_key = _numbered(keys)
    if groups is None:
        return by_key
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    by_group = _numbered(fingerprints(normalized(str(value)) for value in groups))
    size = by_key.max() + 1 + by_group.max() + 1
    links = coo_matrix((np.ones(len(keys)), (by_key, by_key.max() + 1 + by_group)), shape=(size, size))
    _, component = connected_components(links, directed=False)
    return np.asarray(component)[by_key]


def _numbered(values: np.ndarray) -> np.ndarray:
    """Return for each value the index of its first occurrence, int64 of shape (values,)."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])

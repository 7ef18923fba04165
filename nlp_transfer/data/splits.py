"""Named splits: read, checked together, and made where they are not given.

A split made here is stratified and seeded, and rows with the same input (or of the same group) never stand in two. Inputs are
compared as `normalized` gives them: a copy with another case, spacing or Unicode form is the same input.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Protocol, Self, TypeVar

import numpy as np

from nlp_transfer.data.bad_rows import SKIP_HINT, check_filter, check_group, check_rows, describe_skipped
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.utils.errors import BadRow, Problems, UserError

UNLABELLED = "unlabelled"
NEED_VALIDATION = ("early_stopping", "best_metric", "evaluate_every")  # settings of training


class Readable(Protocol):
    """What reading needs to know of a task."""

    def columns(self) -> list[str]: ...
    def input_columns(self) -> list[str]: ...
    @property
    def filters(self) -> Sequence[str]: ...
    def filter(self, train: Rows, names: Sequence[str]) -> dict[int, BadRow]: ...
    def fit(self, train: Rows, problems: Problems) -> Self: ...
    def fit_settings(self, problems: Problems) -> Self: ...
    def check_split(self, train: Rows, problems: Problems) -> None: ...
    def least_validation(self) -> int: ...
    def check_settings(self, training: TrainingConfig, problems: Problems) -> None: ...
    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None: ...
    def keys(self, rows: Rows) -> Iterable[str]: ...
    def strata(self, rows: Rows) -> np.ndarray: ...


TaskType = TypeVar("TaskType", bound=Readable)


@dataclass
class Splits:
    """`train` and, where there are such, `validation`, `test` and `unlabelled`; `notes` are for the user, none of them fatal."""

    rows: dict[str, Rows]
    notes: list[str] = field(default_factory=list)
    skipped: list[tuple[str, BadRow]] = field(default_factory=list)
    """The rows that were left out, each with the split that its file was given for."""
    validation_share: float | None = None
    """`data.validation_share` as resolved; None where validation was given, so that it has no effect."""

    @property
    def train(self) -> Rows:
        """The rows that are learned from; none where the strategy needs none."""
        return self.rows.get("train", from_columns({}, "data.train"))

    @property
    def labelled(self) -> list[str]:
        """The names of the splits whose labels are known."""
        return [name for name in self.rows if name != UNLABELLED]

    def provenance(self) -> dict[str, str]:
        """Path to sha256 of every file that was read, and `hub:` source to revision."""
        found: dict[str, str] = {}
        for rows in self.rows.values():
            found |= rows.hashes
            if rows.revision:
                found[f"hub:{rows.files[0]}"] = rows.revision
        return found


def read_splits(
    data: DataConfig, task: TaskType, training: TrainingConfig, seed: int, needs_validation: bool = False
) -> tuple[Splits, TaskType]:
    """Every split of a run, checked, and the task with what it learned from train (its labels), or without
    train knows from its settings.

    Args:
        needs_validation: whether `data.validation_share: auto` makes a validation split however small it is, which some settings
            of `training` also ask for.

    Raises:
        UserError: anything is wrong with any of the splits; all problems are listed together.
    """
    problems = Problems("data", row_hint=SKIP_HINT)
    needs_validation = needs_validation or any(getattr(training, name) is not None for name in NEED_VALIDATION)
    check_shares(data, problems)
    check_filter(data, task.filters, problems)
    given: dict[str, Rows] = {}
    for role in ("train", "validation", "test", UNLABELLED):
        source = getattr(data, role)
        if source is not None:
            group = [data.group] if data.group and role == "train" else []  # only train is split
            wanted = task.input_columns() if role == UNLABELLED else task.columns()
            try:
                given[role] = read_rows(source, role, data, [*wanted, *group])
            except UserError as error:
                problems.absorb(error)
    if data.train is None:
        task = task.fit_settings(problems)
    if "train" in given:
        if names := [name for name in data.filter or () if name in task.filters]:
            given["train"] = given["train"].without(task.filter(given["train"], names))
        task, given["train"] = _fit(task, given["train"], data, problems)
        task.check_settings(training, problems)  # settings may name labels, which are known only now
    knows = len(given["train"]) > 0 if "train" in given else data.train is None and not problems  # its labels
    for role, rows in given.items():
        if role != "train":
            check = partial(task.check, targets=knows and role != UNLABELLED)
            given[role] = check_rows(rows, role, data, check, problems)
    problems.raise_if_any()
    skipped = [(role, bad) for role, rows in given.items() for bad in sorted(rows.skipped, key=lambda bad: bad[:2])]
    splits = Splits({}, [note for role, rows in given.items() for note in describe_skipped(role, rows)], skipped)
    unlabelled = given.pop(UNLABELLED, None)
    splits.rows |= given
    keys = {role: input_keys(task, rows) for role, rows in given.items()}
    splits.notes += describe_repeats(keys, cache(lambda role: fingerprints(task.keys(given[role]))))
    for role, share in (("test", data.test_share), ("validation", data.validation_part)):
        if role in given or role not in data.splits:
            continue
        train = splits.rows["train"]
        rest, part = split_off(train, share, task.strata(train), keys["train"], data.group, seed)
        few = role == "validation" and len(part) < task.least_validation()
        if few and data.validation_share == "auto" and not needs_validation:
            splits.notes.append(_without_validation(share, len(part), len(train), task.least_validation()))
            continue
        if data.shots != 1:
            task.check_split(given["train"], faults := Problems())
            faults.messages = [f"{message}, or a file as data.{role}, or data.{role}_share: 0" for message in faults.messages]
            problems.merge(faults)
            problems.raise_if_any()
        if len(part) == 0:
            raise UserError(
                f"data.{role}_share: {share} of {len(train)} rows leaves no row for {role}; allowed: a larger share, 0, or a "
                f"file as data.{role}"
            )
        splits.rows |= {"train": train.select(rest), role: train.select(part)}
        keys |= {"train": keys["train"][rest], role: keys["train"][part]}
        splits.notes.append(f"{role}: {len(part)} rows set aside from train (stratified, seed {seed})")
        if few:
            splits.notes.append(
                f"warning: validation: {len(part)} rows decide which weights are kept, fewer than {task.least_validation()}; "
                "their metrics are uncertain"
            )
    if data.validation is None and data.train is not None:
        splits.validation_share = data.validation_part if "validation" in splits.rows else 0.0
    if data.shots is not None and data.train is not None:
        keys["train"] = keys["train"][_draw_shots(splits, data.shots, task, seed)]
    if unlabelled is not None:
        _add_unlabelled(splits, unlabelled, input_keys(task, unlabelled), np.concatenate([np.zeros(0, np.int64), *keys.values()]))
    return splits, task


def _fit(task: TaskType, train: Rows, data: DataConfig, problems: Problems) -> tuple[TaskType, Rows]:
    """The task with what it learned from train, and train as checked: nothing is learned from a row that is skipped."""
    fitted = task

    def check_inputs(rows: Rows, found: Problems) -> None:
        task.check(rows, found, targets=False)
        check_group(rows, data.group, found)

    def fit(rows: Rows, found: Problems) -> None:
        nonlocal fitted
        fitted = task.fit(rows, found)
        check_group(rows, data.group, found)
        fitted.check(rows, found)

    if data.on_bad_rows == "skip":
        train = check_rows(train, "train", data, check_inputs, Problems())  # what else is wrong is found below
    train = check_rows(train, "train", data, fit, problems)
    return fitted, train


def _without_validation(share: float, part: int, rows: int, least: int) -> str:
    """The note on a split that `data.validation_share: auto` does not make."""
    return (
        f"validation: no row is set aside from train; a stratified {share:g} of {rows:,} rows is {part} rows, and fewer than "
        f"{least} are too few to decide which weights are kept. train keeps all rows, and no weights are chosen by it. For a "
        "validation split set data.validation, or data.validation_share to a number"
    )


def input_keys(task: Readable, rows: Rows) -> np.ndarray:
    """int64 of shape (rows,), equal where inputs are the same or near copies (`normalized`)."""
    return fingerprints(map(normalized, task.keys(rows)))


def check_shares(data: DataConfig, problems: Problems) -> None:
    """Adds what makes it unclear which rows are tested on, and shares that leave nothing to learn from."""
    if data.test is not None and data.test_share:
        problems.add(f"data.test_share: found {data.test_share} beside data.test; allowed: one of the two")
    if data.train is not None and data.validation is None and data.validation_part + data.test_share >= 1:
        problems.add(
            f"data.validation_share: found {data.validation_part:g} beside test_share {data.test_share}; allowed: together below "
            "1"
        )


def _draw_shots(splits: Splits, shots: int, task: Readable, seed: int) -> np.ndarray:
    """Leaves `shots` rows of each label in train; gives back which of its rows."""
    train = splits.rows["train"]
    strata = task.strata(train)
    kept = draw_shots(strata, shots, seed)
    splits.rows["train"] = train.select(kept)
    fewer = int((np.unique(strata, return_counts=True)[1] < shots).sum())
    splits.notes.append(
        f"train: {len(kept)} of {len(train)} rows kept, {shots} of each label (drawn with seed {seed})"
        + (f"; {fewer} label{'s have' if fewer > 1 else ' has'} fewer" if fewer else "")
    )
    return kept


def draw_shots(strata: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices (int64, ascending) of `shots` rows of each stratum, all rows of one that has fewer.

    Each stratum is put in an order that the seed alone decides, and its first rows are taken: the draw of 8 is part of that
    of 16.

    Args:
        strata: int array of shape (rows,).
    """
    drawn = [np.zeros(0, np.int64)]
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        generator = np.random.default_rng([seed, int(stratum) + 1])  # -1 is the stratum of rows without a label
        drawn.append(generator.permutation(rows)[:shots])
    return np.sort(np.concatenate(drawn))


def _add_unlabelled(splits: Splits, rows: Rows, keys: np.ndarray, known: np.ndarray) -> None:
    """Rows without answers, each text once, and none that stands in another split: its answer is known or will be asked for."""
    new = np.flatnonzero(~np.isin(keys, known))
    first = np.sort(new[np.unique(keys[new], return_index=True)[1]])
    if not len(first):
        raise UserError(f"data.unlabelled: each of its {len(rows)} rows stands in another split; allowed: other texts as well")
    splits.rows[UNLABELLED] = rows.select(first)
    if len(first) < len(rows):
        splits.notes.append(
            f"{UNLABELLED}: {len(rows) - len(first)} of {len(rows)} rows left out, which repeat another or stand in another split"
        )


def describe_repeats(keys: dict[str, np.ndarray], exact: Callable[[str], np.ndarray] | None = None) -> list[str]:
    """Notes on inputs that stand twice in a split, and warnings on inputs that stand in two given splits.

    Args:
        keys: of shape (rows,) by split, equal where inputs are equal or near copies.
        exact: gives keys of a split that are equal only where inputs are; asked for only where there are copies, to count the
            near ones. None: they are not counted.
    """
    notes = []
    for role, own in keys.items():
        if repeated := _repeats(own):
            near = repeated - _repeats(exact(role)) if exact else 0
            notes.append(f"{role}: {repeated} of {len(own)} rows repeat the input of another row{_near(near)}")
    roles = list(keys)
    for i, first in enumerate(roles):
        for second in roles[i + 1 :]:
            if leaked := int(np.isin(keys[second], keys[first]).sum()):
                near = leaked - int(np.isin(exact(second), exact(first)).sum()) if exact else 0
                notes.append(
                    f"warning: {leaked} of {len(keys[second])} rows of {second} have an input that also stands in {first}"
                    f"{_near(near)}; figures on {second} will be too good"
                )
    return notes


def _repeats(keys: np.ndarray) -> int:
    return len(keys) - len(np.unique(keys))


def _near(count: int) -> str:
    return f" ({count} of them in another case, spacing or Unicode form)" if count else ""


def split_off(
    rows: Rows, share: float, strata: np.ndarray, keys: np.ndarray, group: str | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64, ascending) of the rows that stay and of the rows set aside.

    Whole units are moved: rows with the same key or the same value in column `group` (as `normalized` gives it) belong to one
    unit. In each stratum units are taken in random order while that brings the stratum nearer to `share`; a stratum's last unit
    stays.

    Args:
        strata: int array of shape (rows,), the class of each row for stratification.
        keys: of shape (rows,).
    """
    unit_of = _units(keys, rows.columns[group] if group else None)
    # Arrays in place of a list for each unit: of a large corpus nearly every row is one.
    order = np.argsort(unit_of, kind="stable")
    starts = np.flatnonzero(np.diff(unit_of[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    by_place = np.argsort(order[starts])  # units in the order of their first rows
    starts, ends = starts[by_place], ends[by_place]
    stratum_of = strata[order[starts]]
    for unit in np.flatnonzero(ends - starts > 1):
        stratum_of[unit] = Counter(strata[order[starts[unit] : ends[unit]]].tolist()).most_common(1)[0][0]
    grouped = np.argsort(stratum_of, kind="stable")
    generator = np.random.default_rng(seed)
    taken: list[np.ndarray] = [np.zeros(0, np.int64)]
    owed = 0.0  # what rounding left over is carried on, so that many tiny classes together still give their share
    for units in np.split(grouped, np.flatnonzero(np.diff(stratum_of[grouped])) + 1):
        sizes = (ends - starts)[units].tolist()
        aim = sum(sizes) * share + owed
        got = 0
        for position in generator.permutation(len(units))[:-1].tolist():
            if abs(got + sizes[position] - aim) < abs(got - aim):
                taken.append(order[starts[units[position]] : ends[units[position]]])
                got += sizes[position]
        owed = aim - got
    is_aside = np.zeros(len(rows), bool)
    is_aside[np.concatenate(taken)] = True
    return np.flatnonzero(~is_aside), np.flatnonzero(is_aside)


def _units(keys: np.ndarray, groups: Sequence[object] | None) -> np.ndarray:
    """A number for each row, equal where rows must stay together (connected through key or group)."""
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
    """int64 of shape (values,): the place of the first value that is equal."""
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.append(True, values[order[1:]] != values[order[:-1]]))  # where other values do
    numbers = np.empty(len(values), np.int64)
    numbers[order] = np.repeat(order[begins], np.diff(begins, append=len(values)))
    return numbers

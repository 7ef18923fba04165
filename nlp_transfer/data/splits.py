"""Read and check the splits of a run, and create missing ones from the training rows.

Created splits are stratified and seeded, and rows with the same input or group are always in the same split. Inputs are
normalized before comparison: copies that differ in case, spacing or Unicode form are the same input.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np

from nlp_transfer.data.bad_rows import SKIP_HINT, check_filter, check_group, check_rows, describe_skipped
from nlp_transfer.data.parallel_texts import filter_pairs
from nlp_transfer.data.row_weights import check_weights, without_zero_weights
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.sources.text_columns import fingerprints, normalized
from nlp_transfer.data.split_sampling import describe_repeats, draw_folds, draw_shots, split_off
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.utils.errors import BadRow, Problems, UserError

UNLABELLED = "unlabelled"
MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_CLASS = 20, 3  # for a reliable selection of the best weights
NEED_VALIDATION = ("early_stopping", "best_metric", "evaluate_every")  # settings in `training` that need a validation split


TaskType = TypeVar("TaskType", bound=Any)  # a subclass of `nlp_transfer.tasks.Task`, which this layer cannot import


@dataclass
class Splits:
    """The rows of a run by split: `train` and, if present, `validation`, `test` and `unlabelled`."""

    rows: dict[str, Rows]
    notes: list[str] = field(default_factory=list)
    """Lines to print for the user."""
    skipped: list[tuple[str, BadRow]] = field(default_factory=list)
    """Skipped rows, each as a pair: the name of its split in `data`, and the row."""
    validation_share: float | None = None
    """The resolved `data.validation_share`; None if `data.validation` is set."""

    @property
    def train(self) -> Rows:
        """Training rows; empty if the strategy needs none."""
        return self.rows.get("train", from_columns({}, "data.train"))

    @property
    def labeled(self) -> list[str]:
        """Names of the splits with labels."""
        return [name for name in self.rows if name != UNLABELLED]

    def provenance(self) -> dict[str, str]:
        """Return a mapping from file paths to SHA-256 hashes, and from `hub:SOURCE` to the revision of each hub source."""
        origins: dict[str, str] = {}
        for rows in self.rows.values():
            origins |= rows.hashes
            if rows.revision:
                origins[f"hub:{rows.files[0]}"] = rows.revision
        return origins


def read_splits(
    data: DataConfig, task: TaskType, training: TrainingConfig, seed: int, needs_validation: bool = False
) -> tuple[Splits, TaskType]:
    """Read and check all splits of a run.

    Args:
        needs_validation: If `data.validation_share` is `auto`, create a validation split even if it is small. The settings in
            `NEED_VALIDATION` have the same effect.

    Returns:
        The splits, and the task with its labels. The labels come from the training rows, or from the settings of the task if
        there are no training rows.

    Raises:
        UserError: Lists the problems of all splits.
    """
    needs_validation = needs_validation or any(getattr(training, name) is not None for name in NEED_VALIDATION)
    problems = Problems("data")
    check_shares(data, problems)
    problems.raise_if_any()
    kept = _KEPT.get(_key(data, task, training) or "")
    provided, task = ({**kept[0]}, kept[1]) if kept else read_sources(data, task, training)
    skipped = [(role, bad) for role, rows in provided.items() for bad in sorted(rows.skipped, key=lambda bad: bad[:2])]
    splits = Splits({}, [note for role, rows in provided.items() for note in describe_skipped(role, rows)], skipped)
    unlabelled = provided.pop(UNLABELLED, None)
    splits.rows |= provided
    keys = {role: input_keys(task, rows) for role, rows in provided.items()}
    splits.notes += describe_repeats(keys, cache(lambda role: fingerprints(input_texts(task, provided[role]))))
    whole: Any = None  # of all provided training rows
    split_seed = seed if data.split_seed is None else data.split_seed
    for role, share in (("test", data.test_share), ("validation", data.validation_part)):
        if role in provided or role not in data.splits:
            continue
        train = splits.rows["train"]
        described = task.describe(train)
        whole = whole or described
        by_fold = data.fold if role == "test" else None
        if by_fold:
            fold_of = draw_folds(train, by_fold.of, described.strata, keys["train"], data.group, split_seed)
            remaining, chosen = np.flatnonzero(fold_of != by_fold.index), np.flatnonzero(fold_of == by_fold.index)
        else:
            remaining, chosen = split_off(train, share, described.strata, keys["train"], data.group, split_seed)
        least = max(MIN_VALIDATION_ROWS, MIN_VALIDATION_ROWS_PER_CLASS * len(described.classes))
        is_small = role == "validation" and len(chosen) < least
        if is_small and data.validation_share == "auto" and not needs_validation:
            splits.notes.append(_without_validation(share, len(chosen), len(train), least))
            continue
        if data.shots != 1:
            otherwise = "" if by_fold else f", or a file as data.{role}, or data.{role}_share: 0"
            problems.extend(f"{obstacle}{otherwise}" for obstacle in whole.obstacles)
            problems.raise_if_any()
        if len(chosen) == 0 and by_fold:
            raise UserError(
                f"data.fold: fold {by_fold.index + 1} of {by_fold.of} is empty, since {len(train)} rows (those with the same "
                "input or group are in one fold) do not fill it; allowed: fewer folds"
            )
        if len(chosen) == 0:
            raise UserError(
                f"data.{role}_share: {share} of {len(train)} rows leaves no row for {role}; allowed: a larger share, 0, or "
                f"a file as data.{role}"
            )
        splits.rows |= {"train": train.select(remaining), role: train.select(chosen)}
        keys |= {"train": keys["train"][remaining], role: keys["train"][chosen]}
        part = f", fold {by_fold.index + 1} of {by_fold.of}" if by_fold else ""
        splits.notes.append(f"{role}: {len(chosen)} rows set aside from train{part} (stratified, seed {split_seed})")
        if is_small:
            splits.notes.append(
                f"warning: validation: only {len(chosen)} rows (fewer than {least}) select the best weights; "
                "their metrics are uncertain"
            )
    if data.validation is None and data.train is not None:
        splits.validation_share = data.validation_part if "validation" in splits.rows else 0.0
    if data.shots is not None and data.train is not None:
        keys["train"] = keys["train"][_draw_shots(splits, data.shots, task, seed)]
    if unlabelled is not None:
        _add_unlabelled(splits, unlabelled, input_keys(task, unlabelled), np.concatenate([np.zeros(0, np.int64), *keys.values()]))
    return splits, task


def read_sources(data: DataConfig, task: TaskType, training: TrainingConfig) -> tuple[dict[str, Rows], TaskType]:
    """Read and check the rows of every source, and fit the task to the training rows.

    Raises:
        UserError: Lists the problems of all sources.
    """
    problems = Problems("data", row_hint=SKIP_HINT)
    check_filter(data, task.traits.filters, problems)
    provided: dict[str, Rows] = {}
    for role in ("train", "validation", "test", UNLABELLED):
        source = getattr(data, role)
        if source is not None:
            # Only the training rows are divided and have weights.
            further = [name for name in (data.group, data.weight) if name and role == "train"]
            columns = task.inputs if role == UNLABELLED else [*task.inputs, *task.targets]
            try:
                provided[role] = read_rows(source, role, data, [*dict.fromkeys([*columns, *further])], task.traits.readers)
            except UserError as error:
                problems.absorb(error)
    if data.train is None:
        task = task.fit(from_columns({}, "data.train"), problems)
    if "train" in provided:
        provided["train"] = without_zero_weights(provided["train"], data.weight)
        if names := [name for name in data.filter or () if name in task.traits.filters]:
            pairs = provided["train"]
            provided["train"] = pairs.without(filter_pairs(pairs, task.inputs[0], task.targets[0], names))
        task, provided["train"] = _fit(task, provided["train"], data, training, problems)
    has_labels = len(provided["train"]) > 0 if "train" in provided else data.train is None and not problems
    for role, rows in provided.items():
        if role != "train":
            check = partial(task.check, targets=has_labels and role != UNLABELLED)
            provided[role] = check_rows(rows, role, data, check, problems)
    problems.raise_if_any()
    return provided, task


_KEPT: dict[str, tuple[dict[str, Rows], Any]] = {}
"""The rows of each source and the task fitted to them. The key contains the settings on which they depend."""


def keep_rows(data: DataConfig, task: Any, training: TrainingConfig) -> None:
    """Read and check the rows now. Later calls of `read_splits` with these settings, in this process and its forks, reuse them.

    Those calls may have other shares, folds, shots and seeds.

    Raises:
        UserError: Lists the problems of all sources.
    """
    if (key := _key(data, task, training)) is not None:
        _KEPT[key] = read_sources(data, task, training)


def _key(data: DataConfig, task: Any, training: TrainingConfig) -> str | None:
    """Return the settings on which the rows depend, as JSON. None: a source is an object in memory."""
    settings = [
        data.model_dump(exclude={"shots", "validation_share", "test_share", "fold", "split_seed"}),
        training.model_dump(exclude={"seed"}),
    ]
    try:
        return json.dumps([task.document(), *settings])
    except TypeError:
        return None


def _fit(task: TaskType, train: Rows, data: DataConfig, training: TrainingConfig, problems: Problems) -> tuple[TaskType, Rows]:
    """Fit the task to the usable training rows, and return both."""
    fitted = task

    def check_inputs(rows: Rows, problems: Problems) -> None:
        task.check(rows, problems, targets=False)
        check_group(rows, data.group, problems)
        check_weights(rows, data.weight, problems)

    def fit(rows: Rows, problems: Problems) -> None:
        nonlocal fitted
        fitted = task.fit(rows, problems, training)
        check_group(rows, data.group, problems)
        check_weights(rows, data.weight, problems)
        fitted.check(rows, problems)

    if data.on_bad_rows == "skip":
        train = check_rows(train, "train", data, check_inputs, Problems())  # problems other than bad rows are found again below
    train = check_rows(train, "train", data, fit, problems)
    return fitted, train


def _without_validation(share: float, size: int, rows: int, minimum: int) -> str:
    """Return the note for a run without a validation split."""
    return (
        f"validation: none; a share of {share:g} of {rows:,} rows is {size} rows, and at least {minimum} are needed to "
        "select the best weights. All rows are used for training, and the last weights are kept. For a validation split, set "
        "data.validation, or data.validation_share to a number"
    )


def input_texts(task: Any, rows: Rows) -> Iterator[str]:
    """Yield the input of each row as one text.

    The separator between columns has a space on each side. Normalization collapses repeated spaces, so spaces at the ends of a
    cell make no difference.
    """
    columns = [rows.columns[name] for name in task.inputs]
    return (" \0 ".join(map(str, cells)) for cells in zip(*columns, strict=True))


def input_keys(task: Any, rows: Rows) -> np.ndarray:
    """Return a key for each row, equal for rows with equal normalized inputs; int64 of shape (rows,)."""
    return fingerprints(map(normalized, input_texts(task, rows)))


def check_shares(data: DataConfig, problems: Problems) -> None:
    """Add a problem if two of test share, fold and `data.test` are set, and one if the shares leave no training rows."""
    if data.test is not None and data.test_share:
        problems.add(f"data.test_share: found {data.test_share} together with data.test; allowed: one of the two")
    if data.fold and (data.test is not None or data.test_share):
        other = "test" if data.test is not None else "test_share"
        problems.add(f"data.fold: found together with data.{other}; allowed: one of the two")
    if data.train is not None and data.validation is None and data.validation_part + data.test_share >= 1:
        problems.add(
            f"data.validation_share: found {data.validation_part:g} with test_share {data.test_share}; allowed: a sum below 1"
        )


def _draw_shots(splits: Splits, shots: int, task: Any, seed: int) -> np.ndarray:
    """Reduce the training rows to `shots` rows of each label, and return their indices (int64, ascending)."""
    train = splits.rows["train"]
    strata = task.describe(train).strata
    chosen = draw_shots(strata, shots, seed)
    splits.rows["train"] = train.select(chosen)
    fewer = int((np.unique(strata, return_counts=True)[1] < shots).sum())
    splits.notes.append(
        f"train: {len(chosen)} of {len(train)} rows kept, {shots} of each label (drawn with seed {seed})"
        + (f"; {fewer} label{'s have' if fewer > 1 else ' has'} fewer" if fewer else "")
    )
    return chosen


def _add_unlabelled(splits: Splits, rows: Rows, keys: np.ndarray, known: np.ndarray) -> None:
    """Add the unlabeled rows, except duplicates and inputs that occur in another split.

    Args:
        keys: Keys of `rows`; see `input_keys`.
        known: Keys of the other splits.
    """
    new = np.flatnonzero(~np.isin(keys, known))
    first = np.sort(new[np.unique(keys[new], return_index=True)[1]])
    if not len(first):
        raise UserError(f"data.unlabelled: each of its {len(rows)} rows also occurs in another split; allowed: new texts")
    splits.rows[UNLABELLED] = rows.select(first)
    if len(first) < len(rows):
        splits.notes.append(
            f"{UNLABELLED}: {len(rows) - len(first)} of {len(rows)} rows skipped; they repeat a row or occur in another split"
        )

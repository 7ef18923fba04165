"""The plan of a comparison: strategies, seeds, shots and rates. All of them are validated before the first run starts."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.run.document import merge, parse_overrides
from nlp_transfer.run.resolve import as_plain, check_best_metric, resolve
from nlp_transfer.run.run import Run
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError, shorten

LONGEST_LABEL = 40  # characters of the settings in a label
ALL = "all"
BEST_METRIC = "training.best_metric"  # has an effect even without validation, because strategies are compared by it


@dataclass(frozen=True)
class Variant:
    """A compared strategy, with a short label and the document of its settings."""

    label: str
    document: Any
    takes_steps: bool = True
    """Whether the strategy takes optimizer steps. If not, learning rates have no effect."""
    unused: frozenset[str] = frozenset()
    """Dotted names of settings without effect under this strategy. Its runs omit them."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Dotted names and values of settings that override those of the document."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison."""

    variant: Variant
    shots: int | None
    """Training rows per label. None: all rows."""
    seed: int
    rate: float = 1.0
    """Factor by which the strategy's default learning rate is multiplied."""
    fold: int | None = None
    """The fold that the run is tested on, counted from 0. None: the test split."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        label = re.sub(r"[^\w.=+,-]+", "_", self.variant.label).strip("_")
        rate = f"-{self.rate:g}" if self.rate != 1 else ""
        return f"{label}-{shots_text(self.shots)}-{self.seed}{rate}" + ("" if self.fold is None else f"-fold{self.fold + 1}")

    def describe(self, with_shots: bool) -> str:
        """Return strategy, seed, shots, rate and fold for a progress line."""
        shots = f", {shots_text(self.shots)} per label" if with_shots and self.shots else ", all rows" if with_shots else ""
        rate = f", {self.rate:g} x rate" if self.rate != 1 else ""
        return f"{self.variant.label}, seed {self.seed}{shots}{rate}" + ("" if self.fold is None else f", fold {self.fold + 1}")


@dataclass(frozen=True)
class Plan:
    """The requested comparison."""

    base: Document
    """The settings that all runs share."""
    variants: list[Variant]
    seeds: list[int]
    shots: list[int | None]
    rates: list[float]
    folds: int | None = None
    """Number of folds of a cross-validation. None: the runs are tested on the test split."""

    def document(self, run: PlannedRun, folder: Path) -> Document:
        """Return the settings of one run.

        Args:
            folder: output folder of the comparison.
        """
        data, training = (
            {name: value for name, value in self.base.get(part, {}).items() if f"{part}.{name}" not in run.variant.unused}
            for part in ("data", "training")
        )
        fold = {} if self.folds is None else {"fold": {"index": run.fold, "of": self.folds}}
        document = {
            **self.base,
            "strategy": run.variant.document,
            "data": {**data, "shots": run.shots, **fold},
            "training": {**training, "seed": run.seed},
            "output_dir": str(folder / "runs" / run.name),
        }
        return merge(document, run.variant.settings)[0]

    @property
    def run_count(self) -> int:
        """The number of runs: every rate with the first seed, and the selected rate with the other seeds."""
        runs = sum(len(self.shots) * (len(self.rates_of(variant)) + len(self.seeds) - 1) for variant in self.variants)
        return runs * (self.folds or 1)

    def all_runs(self) -> list[PlannedRun]:
        """Return every run that the plan can contain: for each seed, fold, number of shots, strategy and rate."""
        return [
            PlannedRun(variant, shots, seed, rate, fold)
            for seed in self.seeds
            for fold in (range(self.folds) if self.folds else [None])
            for shots in self.shots
            for variant in self.variants
            for rate in self.rates_of(variant)
        ]

    def rates_of(self, variant: Variant) -> list[float]:
        """Return the factors to try on a strategy's learning rate."""
        return self.rates if variant.takes_steps else [1.0]


def shots_text(shots: int | None) -> str:
    """Format a number of shots; None becomes `all`."""
    return ALL if shots is None else str(shots)


def make_plan(
    raw: Document, strategies: Sequence[Any], seeds: Sequence[Any], shots: Sequence[Any] | None, rates: Sequence[Any] | None,
    folds: int | None = None, command: str = "compare",
) -> tuple[Plan, list[Run]]:  # fmt: skip
    """Make the plan of a comparison, and resolve one run per strategy.

    Args:
        raw: the settings that all runs share, and defaults for strategies.
        folds: number of folds of a cross-validation. None: the strategies are compared on the test split.
        command: name of the command, for messages.

    Raises:
        UserError: settings or arguments are invalid. The message lists all problems.
    """
    problems = Problems(command)
    data, with_shots = raw.get("data"), shots is not None
    document_shots = data.get("shots") if isinstance(data, Mapping) else None
    shots = [document_shots] if shots is None else shots
    points = _numbers("shots", shots, _parse_shots, f"whole numbers from 1 and {ALL}, each once", problems)
    plan = Plan(
        {name: value for name, value in raw.items() if name not in ("strategy", "output_dir")},
        read_strategies(strategies, raw.get("strategy"), problems),
        _numbers("seeds", seeds, _parse_seed, "whole numbers from 0, each once", problems),
        [None if value == ALL else value for value in points],
        _numbers("rates", [1] if rates is None else rates, _parse_rate, "numbers above 0, each once", problems),
        folds,
    )
    if rates is not None:
        _check_rates(raw, problems)
    runs = _resolve_all(raw, plan, problems)
    for run in runs[:1]:  # `resolve` does not check best_metric if there are user metrics
        check_best_metric(run.config.training.best_metric, run.task, problems)
    if len(plan.rates) > 1 and any(run.strategy.traits.takes_steps for run in runs):
        _check_rows_for_rates(runs[0].config.data, problems)
    if command != "cross-validate" and any(run.strategy.traits.choice for run in runs):
        problems.add(f"strategy.name: found auto, which stands for other strategies; allowed with {command}: one of these")
    problems.raise_if_any()
    variants = [
        replace(variant, takes_steps=run.strategy.traits.takes_steps, unused=frozenset(run.unused) - {BEST_METRIC})
        for variant, run in zip(plan.variants, runs, strict=True)
    ]
    say(*_unused_lines(raw, plan, runs, with_shots))
    return replace(plan, variants=variants), runs


def _unused_lines(raw: Document, plan: Plan, runs: list[Run], with_shots: bool) -> list[str]:
    """Return a line for each setting without effect. It names the strategies that do not use the setting, unless none uses it."""
    training, data, strategy = (raw.get(part) or {} for part in ("training", "data", "strategy"))
    unused = {"training.seed": "--seeds replaces it"} if training.get("seed") else {}
    if with_shots and data.get("shots"):
        unused["data.shots"] = "--shots replaces it"
    compared = {part["name"] for variant in plan.variants for part in _as_list(variant.document)}
    for part in _as_list(strategy):
        if isinstance(part, Mapping) and len(part) > 1 and part.get("name") not in compared:
            unused |= {f"strategy.{name}": f"{part.get('name')} is not compared" for name in part if name != "name"}
    labels_by_reason: dict[tuple[str, str], list[str]] = {}
    for variant, run in zip(plan.variants, runs, strict=True):
        for name, reason in run.unused.items():
            if name != BEST_METRIC and not (name == "data.shots" and with_shots):
                labels_by_reason.setdefault((name, reason), []).append(variant.label)
    lines = [
        (name, reason if len(labels) == len(runs) else f"with {', '.join(labels)}: {reason}")
        for (name, reason), labels in labels_by_reason.items()
    ]
    return describe_unused([*unused.items(), *lines])


def _resolve_all(raw: Document, plan: Plan, problems: Problems) -> list[Run]:
    """Resolve one run per strategy. A problem of all strategies is reported once, as a problem of the shared settings."""
    for name in ("data", "training"):
        if not isinstance(raw.get(name, {}), Mapping):
            problems.add(f"{name}: found {shorten(raw[name])}; allowed: settings by name")
            return []
    if "data" not in raw:
        plan.base["data"] = {}
    runs: list[Run] = []
    labels_by_message: dict[str, list[str]] = {}
    variants = plan.variants or [Variant("full", {"name": "full"})]
    for variant in variants:
        fold = None if plan.folds is None else 0
        run = PlannedRun(variant, (plan.shots or [None])[0], (plan.seeds or [0])[0], fold=fold)
        try:
            runs.append(resolve(plan.document(run, Path("comparison")), shared=True))
        except UserError as error:
            collected = Problems()
            collected.absorb(error)
            for message in collected.messages:
                labels_by_message.setdefault(message, []).append(variant.label)
    for message, labels in labels_by_message.items():
        is_shared = len(labels) == len(variants) and not message.startswith("strategy")
        problems.add(message if is_shared else f"--strategies {', '.join(labels)}: {message}")
    return runs


def _check_rates(raw: Document, problems: Problems) -> None:
    data, training = raw.get("data") or {}, raw.get("training") or {}
    if not isinstance(data, Mapping) or not isinstance(training, Mapping):
        return
    if data.get("validation") is None and data.get("validation_share", 0.1) == 0:
        problems.add("--rates: found no validation split to choose a rate on; set data.validation or data.validation_share")
    rate = training.get("learning_rate", "auto")
    if rate != "auto":
        problems.add(
            f"--rates: are factors on each strategy's default rate; found training.learning_rate {rate!r}; allowed: auto"
        )


def _check_rows_for_rates(data: DataConfig, problems: Problems) -> None:
    """Check that there is a test split: metrics on the split that selects the rates are optimistic."""
    if data.test is None and not data.test_share:
        problems.add(
            "--rates: validation selects the rates, so the strategies must be compared on a test split; set data.test, or "
            "data.test_share (such as 0.2)"
        )


def _numbers(name: str, arguments: Any, parse: Any, allowed: str, problems: Problems) -> list[Any]:
    """Parse a list of numbers. Report invalid values, duplicates and an empty list as problems."""
    if isinstance(arguments, (str, bytes)) or not isinstance(arguments, Sequence) or not arguments:
        problems.add(f"--{name}: found {shorten(arguments)}; allowed: a list of {allowed}")
        return []
    values: list[Any] = []
    for text in arguments:
        value = parse(text)
        if value is None or value in values:
            problems.add(f"--{name}: found {shorten(text)}{' twice' if value is not None else ''}; allowed: {allowed}")
        else:
            values.append(value)
    return values


def _number(value: Any, kind: Any, minimum: float = -math.inf, maximum: float = math.inf) -> Any:
    """Convert a value to a finite number of type `kind` from `minimum` to `maximum`. Return None if it is not one."""
    try:
        number = None if isinstance(value, bool) else kind(str(value))
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and minimum <= number <= maximum else None


def _parse_seed(value: Any) -> int | None:
    return _number(value, int, 0, 2**32 - 1)


def _parse_shots(value: Any) -> int | str | None:
    return ALL if value in (None, ALL) else _number(value, int, 1)


def _parse_rate(value: Any) -> float | None:
    return _number(value, float, 0) or None


def read_strategies(arguments: Any, base: Any, problems: Problems) -> list[Variant]:
    """Parse the values of --strategies.

    Args:
        arguments: names, mappings such as `{name: partial, frozen_layers: all}`, or combinations of these joined by +.
        base: the strategy in the settings file. Its settings are the defaults of a strategy with the same name.
    """
    if isinstance(arguments, (str, bytes, Mapping)) or not isinstance(arguments, Sequence) or not arguments:
        problems.add(f"--strategies: found {shorten(arguments)}; allowed: a list of strategies, such as full lora")
        return []
    defaults = {part["name"]: part for part in _as_list(base) if isinstance(part, Mapping) and isinstance(part.get("name"), str)}
    variants: list[Variant] = []
    for item in arguments:
        parts = _parts(item)
        if not parts or any(not isinstance(part.get("name"), str) for part in parts):
            problems.add(
                f"--strategies: found {shorten(item)}; allowed: a name, {{name: NAME, SETTING: VALUE}}, or several of these "
                "joined by +"
            )
            continue
        documents = [{**defaults.get(part["name"], {}), **part} for part in parts]
        variant = Variant("+".join(map(label_of, parts)), documents[0] if len(documents) == 1 else documents)
        folder = PlannedRun(variant, None, 0).name
        clashing = [other.label for other in variants if PlannedRun(other, None, 0).name.casefold() == folder.casefold()]
        if variant.label in clashing:
            problems.add(f"--strategies: found {variant.label!r} twice; allowed: each once")
        elif clashing:
            problems.add(
                f"--strategies: found {clashing[0]!r} and {variant.label!r}, which would share the folder {folder} on file "
                "systems that ignore case; allowed: two separate comparisons"
            )
        else:
            variants.append(variant)
    return variants


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parts(item: Any) -> list[dict[str, Any]]:
    """Parse one value of --strategies into documents. Return an empty list if it is invalid."""
    item = as_plain(item)
    if isinstance(item, str):
        texts = re.split(r"\+(?![^{\[]*[}\]])", item)  # a + outside of braces and brackets
        item = [parse_overrides([f"--strategy={text.strip()}"])[0][1] for text in texts]
        item = item[0] if len(item) == 1 and isinstance(item[0], list) else item
    parts = item if isinstance(item, list) else [item]
    named = [{"name": part.strip()} if isinstance(part, str) else part for part in parts]
    return [dict(part) for part in named] if all(isinstance(part, Mapping) for part in named) else []


def label_of(part: Mapping[str, Any]) -> str:
    """Return a label with the name and settings of a strategy. Long settings are replaced by a hash that is always the same."""
    settings = {name: value for name, value in part.items() if name != "name"}
    if not settings:
        return str(part["name"])
    text = ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items())
    if len(text) > LONGEST_LABEL:
        text = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{part['name']}({text})"

"""What a comparison runs, checked whole before the first run starts."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.run.document import parse_overrides
from nlp_transfer.run.resolve import Run, resolve
from nlp_transfer.settings.schema import DataConfig, Document
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError, shorten

LONGEST = 40  # characters of a label
ALL = "all"
BEST = "training.best_metric"  # by which strategies are compared, also where no run has a validation split


@dataclass(frozen=True)
class Way:
    """One of the strategies that are compared, with the settings it was given, under a short label."""

    label: str
    document: Any
    takes_steps: bool = True
    """Whether a learning rate makes a difference."""
    unused: frozenset[str] = frozenset()
    """Dotted names of the document's settings that have no effect with it; its runs go without them."""


@dataclass(frozen=True)
class Job:
    """One run. `shots` None: all rows; `rate` is a factor on the strategy's own learning rate."""

    way: Way
    shots: int | None
    seed: int
    rate: float = 1.0

    @property
    def name(self) -> str:
        """The run's folder."""
        label = re.sub(r"[^\w.=+,-]+", "_", self.way.label).strip("_")
        return f"{label}-{shots_text(self.shots)}-{self.seed}" + (f"-{self.rate:g}" if self.rate != 1 else "")

    def describe(self, with_shots: bool) -> str:
        shots = f", {shots_text(self.shots)} a label" if with_shots and self.shots else ", all rows" if with_shots else ""
        return f"{self.way.label}, seed {self.seed}{shots}" + (f", {self.rate:g} x rate" if self.rate != 1 else "")


@dataclass(frozen=True)
class Plan:
    """All that was asked for; `base` is the document without what differs from run to run."""

    base: Document
    ways: list[Way]
    seeds: list[int]
    shots: list[int | None]
    rates: list[float]

    def document(self, job: Job, folder: Path) -> Document:
        """The document of one run."""
        data, training = (
            {name: value for name, value in self.base.get(part, {}).items() if f"{part}.{name}" not in job.way.unused}
            for part in ("data", "training")
        )
        return {
            **self.base,
            "strategy": job.way.document,
            "data": {**data, "shots": job.shots},
            "training": {**training, "seed": job.seed},
            "output_dir": str(folder / "runs" / job.name),
        }

    def first_jobs(self) -> list[Job]:
        """A run for each way: what can be checked of one can be checked of all."""
        return [Job(way, self.shots[0], self.seeds[0]) for way in self.ways]

    @property
    def runs(self) -> int:
        return sum(len(self.shots) * (len(self.rates_of(way)) + len(self.seeds) - 1) for way in self.ways)

    def rates_of(self, way: Way) -> list[float]:
        """The factors that are tried on a strategy's rate."""
        return self.rates if way.takes_steps else [1.0]


def shots_text(shots: int | None) -> str:
    return ALL if shots is None else str(shots)


def make_plan(
    raw: Document, strategies: Sequence[Any], seeds: Sequence[Any], shots: Sequence[Any] | None, rates: Sequence[Any] | None
) -> tuple[Plan, list[Run]]:
    """The plan, and for each way its first run, resolved.

    Raises:
        UserError: with every problem found, of the document and of what is compared.
    """
    problems = Problems("compare")
    data = raw.get("data")
    own = data.get("shots") if isinstance(data, Mapping) else None
    points = _numbers(
        "shots", [own] if shots is None else shots, _is_shots, f"whole numbers from 1 and {ALL}, each once", problems
    )
    plan = Plan(
        {name: value for name, value in raw.items() if name not in ("strategy", "output_dir")},
        read_strategies(strategies, raw.get("strategy"), problems),
        _numbers("seeds", seeds, _is_seed, "whole numbers from 0, each once", problems),
        [None if value == ALL else value for value in points],
        _numbers("rates", [1] if rates is None else rates, _is_rate, "numbers above 0, each once", problems),
    )
    if rates is not None:
        _check_rates(raw, problems)
    runs = _resolve_all(raw, plan, problems)
    if len(plan.rates) > 1 and any(run.strategy.takes_steps() for run in runs):
        _check_rows_for_rates(runs[0].config.data, problems)
    problems.raise_if_any()
    ways = [
        replace(way, takes_steps=run.strategy.takes_steps(), unused=frozenset(run.unused) - {BEST})
        for way, run in zip(plan.ways, runs, strict=True)
    ]
    say(*_unused_lines(raw, plan, runs, shots is not None))
    return replace(plan, ways=ways), runs


def _unused_lines(raw: Document, plan: Plan, runs: list[Run], with_shots: bool) -> list[str]:
    """Settings that have no effect, with the strategies for which that holds, unless it holds for all of them."""
    training, data, strategy = (raw.get(part) or {} for part in ("training", "data", "strategy"))
    unused = {"training.seed": "--seeds takes its place"} if training.get("seed") else {}
    if with_shots and data.get("shots"):
        unused["data.shots"] = "--shots takes its place"
    compared = {part["name"] for way in plan.ways for part in _listed(way.document)}
    for part in _listed(strategy):
        if isinstance(part, Mapping) and len(part) > 1 and part.get("name") not in compared:
            unused |= {f"strategy.{name}": f"{part.get('name')} is not compared" for name in part if name != "name"}
    without: dict[tuple[str, str], list[str]] = {}
    for way, run in zip(plan.ways, runs, strict=True):
        for name, reason in run.unused.items():
            if name != BEST and not (name == "data.shots" and with_shots):
                without.setdefault((name, reason), []).append(way.label)
    everywhere = {pair for pair, labels in without.items() if len(labels) == len(runs)}
    some = [
        (name, f"with {', '.join(labels)}: {why}") for (name, why), labels in without.items() if (name, why) not in everywhere
    ]
    return describe_unused([*unused.items(), *everywhere, *some])


def _resolve_all(raw: Document, plan: Plan, problems: Problems) -> list[Run]:
    """A problem that every strategy meets belongs to the document, and is told once."""
    for name in ("data", "training"):
        if not isinstance(raw.get(name, {}), Mapping):
            problems.add(f"{name}: found {shorten(raw[name])}; allowed: settings by name")
            return []
    if "data" not in raw:
        plan.base["data"] = {}
    runs: list[Run] = []
    found: dict[str, list[str]] = {}
    ways = plan.ways or [Way("full", {"name": "full"})]
    for way in ways:
        job = Job(way, (plan.shots or [None])[0], (plan.seeds or [0])[0])
        try:
            runs.append(resolve(plan.document(job, Path("comparison")), shared=True))
        except UserError as error:
            own = Problems()
            own.absorb(error)
            for message in own.messages:
                found.setdefault(message, []).append(way.label)
    for message, labels in found.items():
        everywhere = len(labels) == len(ways) and not message.startswith("strategy")
        problems.add(message if everywhere else f"--strategies {', '.join(labels)}: {message}")
    return runs


def _check_rates(raw: Document, problems: Problems) -> None:
    data, training = raw.get("data") or {}, raw.get("training") or {}
    if not isinstance(data, Mapping) or not isinstance(training, Mapping):
        return
    if data.get("validation") is None and data.get("validation_share", 0.1) == 0:
        problems.add("--rates: validation decides which is best, and there is none; set data.validation or data.validation_share")
    rate = training.get("learning_rate", "auto")
    if rate != "auto":
        problems.add(f"--rates: are factors on each strategy's own rate; found training.learning_rate {rate!r}; allowed: auto")


def _check_rows_for_rates(data: DataConfig, problems: Problems) -> None:
    """Adds a problem where strategies would be compared on the rows that chose their learning rates: the best of several values
    on the same rows is too good, and of more rates the more so."""
    if data.test is None and not data.test_share:
        problems.add(
            "--rates: validation chooses among them, and there are no other rows to compare the strategies on; set data.test, or "
            "data.test_share (0.2, say), which splits rows off train"
        )


def _numbers(name: str, given: Any, allowed: Any, words: str, problems: Problems) -> list[Any]:
    """The values that are allowed; a problem for each that is not, for one given twice, and for none at all."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not given:
        problems.add(f"--{name}: found {shorten(given)}; allowed: a list of {words}")
        return []
    values: list[Any] = []
    for text in given:
        value = allowed(text)
        if value is None or value in values:
            problems.add(f"--{name}: found {shorten(text)}{' twice' if value is not None else ''}; allowed: {words}")
        else:
            values.append(value)
    return values


def _number(value: Any, kind: Any) -> Any:
    if isinstance(value, bool):
        return None
    try:
        number = kind(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_seed(value: Any) -> int | None:
    seed = _number(value, int)
    return seed if seed is not None and 0 <= seed < 2**32 else None


def _is_shots(value: Any) -> Any:
    shots = ALL if value in (None, ALL) else _number(value, int)
    return shots if shots == ALL or (isinstance(shots, int) and shots >= 1) else None


def _is_rate(value: Any) -> float | None:
    rate = _number(value, float)
    return rate if rate is not None and rate > 0 else None


def read_strategies(given: Any, base: Any, problems: Problems) -> list[Way]:
    """What stands after --strategies: a name, a mapping `{name: partial, frozen_layers: all}`, or several joined by +.

    `base`, the document's own strategy, gives the settings of those of the same name, which own settings override.
    """
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Sequence) or not given:
        problems.add(f"--strategies: found {shorten(given)}; allowed: a list of strategies, such as full lora")
        return []
    known = [base] if isinstance(base, Mapping) else base if isinstance(base, list) else []
    settings = {part["name"]: dict(part) for part in known if isinstance(part, Mapping) and isinstance(part.get("name"), str)}
    ways: list[Way] = []
    for item in given:
        parts = _parts(item)
        if not parts or any(not isinstance(part.get("name"), str) for part in parts):
            problems.add(
                f"--strategies: found {shorten(item)}; allowed: a name, {{name: NAME, SETTING: VALUE}}, or several of these "
                "joined by +"
            )
            continue
        way = Way("+".join(map(label_of, parts)), None)
        if way.label in [other.label for other in ways]:
            problems.add(f"--strategies: found {way.label!r} twice; allowed: each once")
            continue
        folder = Job(way, None, 0).name
        if same := [other.label for other in ways if Job(other, None, 0).name.casefold() == folder.casefold()]:
            problems.add(
                f"--strategies: found {same[0]!r} and {way.label!r}, whose runs would share the folder {folder} where file names "
                "differ not in case alone; allowed: these in two comparisons"
            )
            continue
        whole = [{**settings.get(part["name"], {}), **part} for part in parts]
        ways.append(Way(way.label, whole[0] if len(whole) == 1 else whole))
    return ways


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parts(item: Any) -> list[dict[str, Any]]:
    if hasattr(item, "document"):
        item = item.document()
    if isinstance(item, str):
        texts = re.split(r"\+(?![^{\[]*[}\]])", item)  # not a + inside braces
        item = [parse_overrides([f"--strategy={text.strip()}"])[0][1] for text in texts]
        item = item[0] if len(item) == 1 and isinstance(item[0], list) else item
    parts = item if isinstance(item, list) else [item]
    named = [{"name": part.strip()} if isinstance(part, str) else part for part in parts]
    return [dict(part) for part in named] if all(isinstance(part, Mapping) for part in named) else []


def label_of(part: Mapping[str, Any]) -> str:
    """The name and the settings given with it; many settings by a short sum of theirs, which stays the same from call to call."""
    settings = {name: value for name, value in part.items() if name != "name"}
    if not settings:
        return str(part["name"])
    text = ", ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items())
    if len(text) > LONGEST:
        text = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"{part['name']}({text})"

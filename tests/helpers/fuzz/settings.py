"""Settings that fight back: YAML documents and dotted flags, through everything that happens before a model is loaded."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.run.document import MAX_BYTES, MAX_DEPTH, merge, parse_overrides, read_document
from nlp_transfer.run.resolve import resolve
from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from tests.helpers.fuzz.cases import Case, Make, ViolationError, mutate, odd_text, weighted
from tests.helpers.fuzz.files import no_file

GOOD = """\
model: google-bert/bert-base-uncased
data: &data {train: reviews.csv, test: null, validation_share: 0.1}
task:
  name: text_classification
  text: text  # a column
  labels: [good, "bad", 'no']
strategy: [{name: lora, r: 16}]
training: {epochs: 3, learning_rate: 2.0e-4, class_weights: {good: 1, bad: 2.5, "no": 1}, seed: 0}
output_dir: runs/reviews
"""
PARTS = ["model", "data", "task", "strategy", "training", "output_dir", "provenance"]
SECTIONS: dict[str, list[str]] = {
    "data": list(DataConfig.model_fields),
    "training": list(TrainingConfig.model_fields),
    "task": sorted({row[0].split(".")[1] for row in registry.settings_of("task")}),
    "strategy": sorted({row[0].split(".")[1] for row in registry.settings_of("strategy")}),
}
ODD_SCALARS = [
    "!!int ''", "!!int x", "!!float x", "!!bool maybe", "!!timestamp x", "!!binary '*'", "!!binary aGk=", "!!null x",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1, a: 2]", "!!python/object:os.system x",
    "!!python/object/apply:os.system ['touch escaped']", "!!python/name:os.system", "!python/object:x y", "!unknown x",
    "!!str 5", "!!str {}", "!!map []", "!!seq {}", "=", "<<", "~", "null", "yes", "No", "1:30", "190:20:30.15", "0o17", "017",
    "0x1F", "0b101", "1_000", "+.inf", "-.INF", ".nan", "1e5", "2020-01-01", "2020-13-45", "2001-12-14t21:59:43.10-05:00",
    "2001-01-01 00:00:00 +99", "0001-01-01 00:00:00 +23", '"\\ud800"', '"\\U00110000"', '"\\x00"', '"\\0"', "'\u0085'",
    "\u2028", "\ufeff", "{a: 1, a: 2}", "{1: a, true: b}", "{[1]: 2}", "{{a: 1}: 2}", "{? [a, b] : c}", "&a [*a]", "*nowhere",
    "&x 1", "{<<: {a: 1}, b: 2}", "{<<: 5}", "{<<: [{a: 1}, 5]}", "|\n  text", ">-\n  text", "- a\n  - b", "'open", '"open',
    "[", "{", "]", "%TAG", "@x", "`x", "\t", "--- a", "...", "!<tag:yaml.org,2002:int> 1.5", "!<", "? ", ": :", "-", "1" * 400,
    "1" * 5000, "0x" + "f" * 900, "1:" * 300 + "1", "1:" * 300 + "1.5", "9" * 2000 + ".0", "1e400", "-1", "0", "0.0", "2",
    "true", "[]", "{}", "''",
]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind == 0:
        return odd_text(rng, 2)
    if kind == 1:
        return rng.choice([0, 1, -1, 2, 32, 10**6, 10**18, 2**63, 10**400, -(10**30)])
    if kind == 2:
        return rng.choice([0.0, 0.1, 0.5, 1.0, -0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")])
    if kind == 3:
        return rng.choice([None, True, False])
    if kind == 4:
        words = [
            "auto", "balanced", "linear", "bf16", "utf-8", "minimal", "lora", "full", "text", "mean", "a.csv", "all", "accuracy",
            "tensorboard",
        ]  # fmt: skip
        return rng.choice(words)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {"source": "a.en", "target": value(rng, depth + 1)}
    return {
        rng.choice([odd_text(rng, 2), "name", "a", 1, None, 1.5, True]): value(rng, depth + 1) for _ in range(rng.randint(0, 3))
    }


def document(rng: random.Random) -> dict[Any, Any]:
    """Settings with the right names and any values, or nearly so."""
    found: dict[Any, Any] = yaml.safe_load(GOOD)
    found["task"] = {"name": rng.choice([*registry.names("task"), "text_classification"])}
    found["strategy"] = {"name": rng.choice(registry.names("strategy"))}
    if rng.random() < 0.2:
        found["strategy"] = [{"name": name} for name in rng.sample(registry.names("strategy"), rng.randint(0, 3))]
    for _ in range(rng.randint(0, 4)):
        section = rng.choice(list(SECTIONS))
        part = found[section]
        if isinstance(part, list):
            part = part[0] if part and isinstance(part[0], dict) else {}
        if isinstance(part, dict):
            part[rng.choice(SECTIONS[section]) if rng.random() < 0.9 else odd_text(rng, 1)] = value(rng)
    if rng.random() < 0.3:
        found[rng.choice([*PARTS, odd_text(rng, 1), 5, None])] = value(rng)
    if rng.random() < 0.1:
        found.pop(rng.choice(list(found)))
    return found


def check(found: Any) -> None:
    """What was resolved must resolve to itself, from the typed settings and from their JSON as YAML."""
    run = resolve(found)
    again = resolve(run.config)
    if again.config != run.config or again.task != run.task:
        raise ViolationError(f"{run.config} became {again.config}")


def from_document(rng: random.Random, folder: Path) -> Case:
    made = document(rng)
    path = folder / "run.yaml"
    try:
        text = yaml.safe_dump(made, allow_unicode=rng.random() < 0.5) if rng.random() < 0.7 else json.dumps(made)
    except (TypeError, yaml.YAMLError):
        text = GOOD
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    return _read(path, "settings of any values")


def _read(path: Path, kind: str) -> Case:
    return Case(kind, lambda: check(read_document(path)), (str(path), "names of settings", *PARTS))


def odd_values(rng: random.Random, folder: Path) -> Case:
    lines = []
    for line in GOOD.splitlines():
        name = line.partition(":")[0]
        lines.append(f"{name}: {rng.choice(ODD_SCALARS)}" if rng.random() < 0.2 and not line.startswith(" ") else line)
    if rng.random() < 0.3:
        lines.append(f"{rng.choice([*PARTS, *ODD_SCALARS])}: {rng.choice(ODD_SCALARS)}")
    path = folder / "run.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    return _read(path, "odd YAML")


def mutated(rng: random.Random, folder: Path) -> Case:
    path = folder / "run.yaml"
    path.write_bytes(
        mutate(rng, GOOD.encode(rng.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])))
    )
    return _read(path, "broken YAML")


def growing(rng: random.Random, folder: Path) -> Case:
    """Documents that are larger, deeper or longer than they look."""
    width, height = rng.choice([2, 9, 30]), rng.randint(2, 12)
    depth = rng.choice([MAX_DEPTH - 5, MAX_DEPTH, MAX_DEPTH + 1, 200, 2000])
    start, end = rng.choice([("[", "]"), ("{a: ", "}"), ("- ", "}"), ("? ", "}")])

    def chain(first: str, form: str, height: int) -> str:
        levels = (form.replace("*", f"*a{i - 1}").replace("%", str(i)) for i in range(1, height))
        return f"a0: &a0 {first}\n" + "".join(f"a{i}: &a{i} {level}\n" for i, level in enumerate(levels, 1))

    many = ", ".join("*" * width)
    text = rng.choice([
        chain("[x, x]", f"[{many}]", height) + f"model: *a{height - 1}",
        chain("{x: 1}", f"{{<<: [{many}], k%: 1}}", height) + f"training: *a{height - 1}",
        chain("x", "{? * : *}", height), chain("x", "[*]", rng.choice([10, 300])),
        "model: " + start * depth + end * depth * (rng.random() < 0.7), GOOD + "provenance: {a: &a {b: *a}}\n",
        GOOD + f"provenance: {{x: '{'y' * rng.choice([1000, 100_000])}'}}\n",
        GOOD + "provenance:\n" + "".join(f"  k{i}: v\n" for i in range(rng.choice([10, 500]))),
    ])  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(text)
    return _read(path, "YAML that grows")


def large(rng: random.Random, folder: Path) -> Case:
    path = folder / "run.yaml"
    with path.open("wb") as file:
        file.truncate(rng.choice([MAX_BYTES + 1, 5 * 2**30]))
    return Case("settings without end", lambda: check(read_document(path)), (f"{MAX_BYTES:,} bytes",))


def not_regular(rng: random.Random, folder: Path) -> Case:
    path = folder / "run.yaml"
    no_file(path, rng)
    path = rng.choice(
        [path, path, path, folder / "a\0.yaml", folder / ("x" * 300), folder, Path("/" + "a/" * 3000), path / "below"]
    )

    def run() -> None:
        raise ViolationError(f"it was read: {read_document(path)}")

    return Case("settings in no file", run, (str(path)[:200],))


FLAGS = [
    "--training.epochs", "--training..epochs", "--.", "--=", "--", "-", "", "training", "--task.name", "--task", "--strategy",
    "--strategy.name", "--strategy.0", "--strategy.0.r", "--strategy.-1", "--strategy.²", "--strategy.٣",
    "--strategy.99999999999999999999", "--strategy.name.x", "--data.train", "--data.train.source", "--model", "--model.x",
    "--training.class_weights.a-b", "--training.class_weights.good", "--output_dir", "--a.b.c.d.e.f", "--data.encoding",
    "--task.labels.0", "--task.labels", "--\0", "--é", "--training.epochs.", "--training.seed=1=2", "--training", "--data",
    "--provenance.x.y", "--training.early-stopping",
]  # fmt: skip


def flags(rng: random.Random, folder: Path) -> Case:
    arguments = []
    for _ in range(rng.randint(1, 4)):
        flag = rng.choice(FLAGS) if rng.random() < 0.8 else "--" + odd_text(rng, 3)
        text = rng.choice([rng.choice(ODD_SCALARS), odd_text(rng, 2), str(value(rng)), "[" * rng.choice([3, 500]), "1", "lora"])
        arguments += [f"{flag}={text}"] if rng.random() < 0.3 else [flag, text]
    base: Mapping[Any, Any] = yaml.safe_load(GOOD) if rng.random() < 0.7 else document(rng)
    before = repr(base)

    def run() -> None:
        merged, notes = merge(dict(base), parse_overrides(arguments))
        if repr(base) != before or not all(isinstance(note, str) for note in notes):
            raise ViolationError("merging changed the document it was given, or left a note that is none")
        check(merged)

    return Case("flags", run, ("--", "dotted name", "names of settings", *PARTS))


MAKERS: list[tuple[Make, float]] = [
    (from_document, 35), (odd_values, 20), (mutated, 15), (growing, 6), (large, 0.3), (not_regular, 3), (flags, 25),
]  # fmt: skip
make = weighted(MAKERS)

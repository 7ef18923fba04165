"""Adapters that fight back: their settings, their records, and the headers of their weights."""

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from nlp_transfer.data.sources import check_recorded_model
from nlp_transfer.models.verification import adapter_settings
from nlp_transfer.models.verification.adapter_settings import SETTINGS, reduce_adapter_settings
from nlp_transfer.models.verification.weight_files import stored_shapes
from nlp_transfer.saved_models.load import RECORD, adapter_record, quiet
from nlp_transfer.strategies.peft import Peft
from tests.helpers.fuzz.cases import Case, ViolationError, mutate, odd_text
from tests.helpers.fuzz.settings import value
from tests.helpers.models import tiny_classifier

# Sizes that peft chooses for large models.
SMALL: dict[str, dict[str, Any]] = {
    "MISS": {"r": 8}, "SHIRA": {"r": 4}, "WAVEFT": {"n_frequency": 100}, "PROMPT_TUNING": {"num_virtual_tokens": 4},
}  # fmt: skip
WEIGHTS = "adapter_model.safetensors"
SIZES = [0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 255, 1024, 2**14, 2**14 + 1, 10**6, 2**31, 2**63, 10**30, 0.5, 1e308, -1.5, True, None]
STRINGS = [
    "/etc/passwd", "../x", "org/name", "https://example.org/x", "os.system", "all-linear", "all", "none", "TEXT", "mirror",
    "query",
    "(a+)+$", ".*.*.*.*x", "(.*)*", "((((", "[", "(?P<a>x)", "(?=x)", r"\1", "a{1000}", "(a|a)" * 40,
    r"(bert|bert)\.encoder\.layer\.\d+\.(.*|.*)", "|".join(["query"] * 5000), ".*query", r"\d+\d+", "pissa_niter_99999999",
    "pissa",
    "x" * 100_000, "|" * 70_000, "SEQ_CLS", "CAUSAL_LM", "lora_only", "relu", "db1", "loftq", "eva",
]  # fmt: skip
PATHS = [
    "org/name", "name", "org/name@main", "models/base", "./base", "~/base", "/nowhere/base", "../base", "a/../b", "pypi:x==1#y",
    "",
    "org/name/more", "C:\\base", "http://x/y", "\0", "a" * 5000,
]  # fmt: skip


@cache
def base_model() -> Any:
    torch.manual_seed(0)
    return tiny_classifier("bert")


@cache
def _module_names() -> tuple[str, ...]:
    """Names such as those of a large model."""
    names = [name.replace("layer.1.", f"layer.{i}.") for name, _ in base_model().named_modules() for i in range(12)]
    return tuple(dict.fromkeys(names))


@cache
def saved_adapter(kind: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and the tensors of an adapter as it is saved."""
    with quiet():
        model: Any = Peft(type=kind, settings=SMALL.get(kind, {})).prepare_model(copy.deepcopy(base_model()))
    settings = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=list))
    return settings, {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}


def changed(rng: random.Random, settings: dict[str, Any]) -> dict[str, Any]:
    settings = copy.deepcopy(settings)
    known = list(adapter_settings._defaults()["LORA"]) + list(settings)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        name = rng.choice(known) if rng.random() < 0.9 else odd_text(rng, 2)
        kind = rng.randrange(6)
        if kind == 0:
            settings[name] = value(rng)
        elif kind == 1:
            settings[name] = rng.choice(SIZES)
        elif kind == 2:
            settings[name] = rng.choice(STRINGS)
        elif kind == 3:
            settings[name] = {rng.choice(STRINGS): rng.choice([*SIZES, *STRINGS]) for _ in range(rng.randint(0, 2))}
        elif kind == 4:
            settings[name] = [rng.choice([*STRINGS, *SIZES, [0, 2], [0, 10**9]]) for _ in range(rng.choice([1, 2, 3, 500]))]
        else:
            settings.pop(name, None)
    if rng.random() < 0.05:
        settings["layer_replication"] = [[0, rng.choice([1, 2, 1000])]] * rng.choice([1, 2, 40, 3000])
    changed_settings: dict[str, Any] = json.loads(json.dumps(settings))  # JSON's keys are texts
    return changed_settings


def make(rng: random.Random, folder: Path) -> Case:
    """Settings, a header or a record, each read without a model."""
    return rng.choice([_settings, _settings, _header, _record])(rng, folder)


def _settings(rng: random.Random, folder: Path) -> Case:
    document = changed(
        rng, saved_adapter(rng.choice(["LORA", "VERA", "OFT", "PREFIX_TUNING", "P_TUNING", "IA3", "OSF", "PSOFT"]))[0]
    )

    def run() -> None:
        with redirect_stderr(StringIO()):  # nobody reads the notes of thousands of inputs
            reduced = reduce_adapter_settings(document, SETTINGS)
        for name, inner in _leaves("", reduced):
            matched = "modules" in name or "pattern" in name or name == "target_parameters"
            if isinstance(inner, str) and (re.search("[/:~]", inner) or (not matched and inner in ("TEXT", "mirror"))):
                raise ViolationError(f"{name} is {inner[:100]}")
            if isinstance(inner, str) and matched:
                for module in _module_names():
                    re.fullmatch(inner, module)

    return Case("settings", run, (SETTINGS,))


def _leaves(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield f"key of {name}", key
            yield from _leaves(name or key, inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from _leaves(name, inner)
    else:
        yield name, tree


def _header(rng: random.Random, folder: Path) -> Case:
    path = folder / WEIGHTS
    content = save({"a": torch.ones(2, 3), "b": torch.ones(0, dtype=torch.float16), "c.d": torch.ones(5, dtype=torch.bool)})
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = rng.randrange(5)
    if kind == 0:
        content = mutate(rng, content)
    elif kind == 1:
        content = struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, len(content), 2**24, 2**40, 2**63])) + content[8:]
    elif kind == 2:
        field, name = rng.choice(["shape", "dtype", "data_offsets"]), rng.choice(["a", "b", "c.d"])
        header[name][field] = rng.choice(
            [[], [0], [2, 3], [-1], [2**62, 2], [0, 2**70], "F32", "F4", 5, None, [1.5], [True], [0, 10**9]]
        )
        content = _packed(header, rest)
    elif kind == 3:
        more = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(rng.choice([10, 1000, 5000]))}
        content = _packed(header | more, rest)
    else:
        content = _packed(rng.choice([[], None, 5, {"a": []}, {"__metadata__": value(rng)}, header | {"x": value(rng)}]), rest)
    path.write_bytes(content)

    def run() -> None:
        shapes = stored_shapes(path)
        try:
            with safe_open(path, framework="pt") as file:
                read = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError:  # refused by the library as well
            return
        if shapes != read:
            raise ViolationError(f"read {shapes}, and the library {read}")

    return Case(f"header {kind}", run, (WEIGHTS,))


def _packed(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def _record(rng: random.Random, folder: Path) -> Case:
    base = rng.choice(
        [value(rng), {"model": rng.choice([*PATHS, value(rng)]), "revision": rng.choice([None, "main", value(rng)])}]
    )
    record = {"settings": {"name": "text_classification"}, "base": base}
    if rng.random() < 0.1:
        record = rng.choice([value(rng), {}, {"settings": value(rng)}])
    text = json.dumps(record)
    (folder / RECORD).write_text(text if rng.random() < 0.9 else text[: rng.randrange(len(text) + 1)], encoding="utf-8")

    def run() -> None:
        model = adapter_record(folder)["base"]["model"]
        check_recorded_model(model, RECORD)
        if not (model.startswith(("/", "pypi:")) or re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(@[\w./-]+)?", model)):
            raise ViolationError(f"taken for a base: {model!r}")

    return Case("record", run, (RECORD,))

"""The benchmarks' own parts: figures, tables and the talk with workers. Nothing is measured here."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.builders import write

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
ECHO = """
import os, sys
from protocol import Channel
channel = Channel()
print("noise of a library")
os.write(1, b"noise of a compiled library\\n")
def turn(request):
    if request.get("fail"):
        raise ValueError("the reason")
    return {"seconds": channel.settings["factor"] * request["value"], "environment": sorted(os.environ)}
channel.serve(turn, hello=channel.settings["name"])
"""
LOOP = """
from protocol import Channel
channel = Channel()
channel.ready()
for step in range(1000):
    channel.answer({"step": step, "asked": channel.next()["value"]})
"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules `protocol` and `tables`, gone again afterwards: their names are those of scripts."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("protocol"), importlib.import_module("tables")
    for name in ("protocol", "tables"):
        sys.modules.pop(name, None)


def test_workers_take_turns_and_keep_their_noise_apart(
    parts: tuple[ModuleType, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, _ = parts
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    script = str(write(tmp_path / "worker.py", ECHO))
    order: list[str] = []

    def request(worker: object, round_: int) -> dict[str, int]:
        order.append(worker.name)  # type: ignore[attr-defined]
        return {"value": round_ + 1}

    with (
        protocol.Worker("one", script, {"factor": 2}, tmp_path, 1) as one,
        protocol.Worker("the other", script, {"factor": 3}, tmp_path, 1) as other,
    ):
        assert one.facts["hello"] == "one"
        assert "python" in one.facts["versions"]
        found = protocol.take_turns([one, other], 2, request)
        assert [answer["seconds"] for answer in found["one"]] == [2, 4]
        assert [answer["seconds"] for answer in found["the other"]] == [3, 6]
        assert found["one"][0]["peak_memory_bytes"] > 1_000_000
        environment = found["one"][0]["environment"]
        with pytest.raises(protocol.WorkerError, match="the reason"):
            one.turn(fail=True)
        assert other.turn(value=5)["seconds"] == 15  # one that fails does not take the others with it
    assert order == ["one", "the other", "the other", "one"]
    assert "MALLOC_ARENA_MAX" not in environment
    assert "OMP_NUM_THREADS" in environment
    assert "noise of a compiled library" in (tmp_path / "one.log").read_text(encoding="utf-8")


def test_a_loop_that_holds_the_control_waits_for_its_turns(parts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    protocol, _ = parts
    with protocol.Worker("loop", str(write(tmp_path / "worker.py", LOOP)), {}, tmp_path, 1) as worker:
        assert [worker.turn(value=value)["asked"] for value in "abc"] == ["a", "b", "c"]
        assert worker.turn(value="d")["step"] == 3


def test_a_worker_that_cannot_start_says_why(parts: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    protocol, _ = parts
    with pytest.raises(protocol.WorkerError, match="No module named 'not_there'"):
        protocol.Worker("broken", str(write(tmp_path / "worker.py", "import not_there")), {}, tmp_path, 1)


def test_figures(parts: tuple[ModuleType, ModuleType]) -> None:
    _, tables = parts
    assert tables.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert tables.ratios([2.0, 9.0], [1.0, 3.0])["median"] == 2.5
    with pytest.raises(ValueError, match="shorter"):
        tables.ratios([1.0, 2.0], [1.0])
    found = tables.interval([0.9, 0.92, 0.94])
    # t of 2 degrees of freedom at 0.975 is 4.3027; the standard error is 0.02 / sqrt(3).
    assert found["mean"] == pytest.approx(0.92)
    assert found["high"] - found["mean"] == pytest.approx(4.3027 * 0.02 / 3**0.5, rel=1e-4)
    assert tables.interval([0.9])["low"] is None


def test_a_cycle_with_an_evaluation_counts_as_the_usual_one(parts: tuple[ModuleType, ModuleType]) -> None:
    protocol, _ = parts
    times = [100.0, 101.0, 102.0, 112.0, 113.5, 114.5]  # after step 3 nine seconds of evaluating; loading before step 1
    assert protocol.training_seconds(times, 6, {3}) == pytest.approx(1 + 1 + 1 + 1 + 1.5 + 1)
    assert protocol.training_seconds(times, 3, {3}) == pytest.approx(3)
    assert protocol.training_seconds(times, 6, ()) == pytest.approx(1 + 1 + 1 + 10 + 1.5 + 1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0"), (12.345, "12.3"), (1234.5, "1,234"), (1234, "1,234"), (-1234.5, "-1,234"), (999.96, "1,000"),
        (0.00002, "2.0e-05"), (0.98765, "0.988"), ("a|b", "a\\|b"),
        ({"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}, "2 (1 to 3)"),
        ({"median": 2.0, "min": 2.0, "max": 2.0, "n": 1}, "2"),
        ({"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}, "0.5 (0.4 to 0.6)"),
        ({"mean": 0.5, "low": None, "high": None, "n": 1}, "0.5"),
    ],
)  # fmt: skip
def test_cells(parts: tuple[ModuleType, ModuleType], value: object, text: str) -> None:
    assert parts[1].cell(value) == text


def test_the_page(parts: tuple[ModuleType, ModuleType]) -> None:
    rows = [{"side": "here", "rows/s": parts[1].spread([2.0, 4.0])}, {"side": "there", "seconds": 1.5}]
    table = {"about": "What it is.", "tables": [{"title": "A", "rows": rows}], "notes": ["a note"], "sitting": {"rounds": 3}}
    benchmarks = {"training": table, "prediction": {"error": "it broke"}}
    results = {"machine": {"cores": 2}, "quick": False, "benchmarks": benchmarks}
    page = parts[1].markdown(json.loads(json.dumps(results)))
    assert "| side | rows/s | seconds |\n|---|---|---|\n| here | 3 (2 to 4) | - |\n| there | - | 1.5 |" in page
    assert "- a note" in page
    assert "(rounds 3)" in page
    assert "it broke" in page
    assert "A trial" not in page
    assert "A trial" in parts[1].markdown(results | {"quick": True})

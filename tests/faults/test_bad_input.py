"""Bad input, through the command's own code path: exit status 2, a message that says where, what and what is allowed, and
nothing left behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.commands.exit_status import run_command
from tests.helpers.mistakes import experiments, predictions, settings, strategies, tables, translation
from tests.helpers.mistakes.case import VALID, Case, check, missing

pytestmark = pytest.mark.process

TABLES = [
    *((module, VALID) for module in (settings, tables, predictions, strategies, experiments)),
    (translation, translation.VALID),
]
CASES = [
    pytest.param(case, valid, id=f"{module.__name__.rpartition('.')[2]}: {case.id}".replace(" ", "-"))
    for module, valid in TABLES
    for case in module.TABLE
]


@pytest.mark.parametrize(("case", "valid"), CASES)
def test_mistake_is_named_and_leaves_nothing(
    case: Case, valid: dict[str, Any], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(case, valid, capfd)


def test_every_case_has_its_name_and_facts() -> None:
    cases = [case for module, _ in TABLES for case in module.TABLE]
    assert len({param.id for param in CASES}) == len(cases) > 500
    assert all(fact.strip() for case in cases for fact in case.says.split(" … "))


def test_facts_are_compared_in_their_order() -> None:
    message = "training.epochs: found 0; allowed: 1 or more"
    assert missing("training.epochs … 0 … allowed", message) == []
    assert missing("allowed … found", message) == ["found"]


def test_metric_that_cannot_be_had(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def no_network(name: str) -> None:
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr("evaluate.load", no_network)
    case = Case(
        "metric", "training.hub_metrics: … 'rouge' … the hub cannot be reached", {"training.hub_metrics": ["rouge"]},
        run=("train", "run.yaml", "--allow-hub-metrics"),
    )  # fmt: skip
    check(case, VALID, capfd)


def test_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "train.csv"))
    says = f"strategy.cache: {folder / 'train.csv'}/nlp_transfer/features … allowed: memory"
    check(Case("cache", says, strategies.chosen("features", cache="disk")), VALID, capfd)


def test_exit_status_of_the_process(folder: Path) -> None:
    """What a shell sees: 2 for a mistake, 0 for help."""
    run = [sys.executable, "-m", "nlp_transfer"]
    wrong = subprocess.run([*run, "train", "nowhere.yaml"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: nowhere.yaml: there is no such file")
    helped = subprocess.run([*run, "train", "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "--training.epochs" in helped.stdout


def test_crash_is_one_with_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def crash() -> None:
        raise RuntimeError("a fault of the program")

    with pytest.raises(SystemExit) as ended:
        run_command(crash)
    assert ended.value.code == 1
    assert "Traceback" in (said := capfd.readouterr().err)
    assert "a fault of the program" in said

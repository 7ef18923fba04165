"""Some hundreds of raced writes; tens of thousands of others: scripts/endurance/race_outputs.py."""

import os
import random
from pathlib import Path

import pytest

from nlp_transfer.utils import atomic_files
from tests.helpers.fuzz.outputs import Race

pytestmark = pytest.mark.process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_raced_outputs_have_one_complete_writer(tmp_path: Path) -> None:
    race = Race(tmp_path)
    for i in range(16):
        race.round(random.Random(f"test:{i}"))
    assert race.violations == []
    assert race.counts["written"] > 50
    assert race.counts["killed"] > 5
    assert sum(count for what, count in race.counts.items() if what.startswith("planted")) > 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writers are forked")
def test_what_counts_as_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net catches a writer that does not care whether there is a file."""
    monkeypatch.setattr(atomic_files, "_put", lambda part, path, overwrite: os.replace(part, path))
    race = Race(tmp_path)
    for i in range(10):
        race.round(random.Random(f"test:{i}"))
    assert race.violations

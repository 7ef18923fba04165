"""`nlp-transfer evaluate RUN` scores the test data that the run recorded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import command, sentiment_rows, succeed, write

pytestmark = pytest.mark.model


def test_the_recorded_test_file_gives_the_metrics_of_the_run(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = sentiment_rows(80)
    lines = [f"{text};{label}\n" for text, label in [("text", "label"), *rows]]
    write(Path("train.csv"), "".join(lines[:61]))
    write(Path("test.csv"), "".join([lines[0], *lines[61:]]))
    run = train(data={"train": "train.csv", "test": "test.csv", "delimiter": ";"}, output_dir="run")
    for model in ("run", tmp_path / "run" / "model"):
        output, shown = succeed("evaluate", model)
        scores = json.loads(output)
        assert scores.pop("rows") == 20
        assert {name: value for name, value in scores.items() if name != "skipped"} == pytest.approx(
            run.metrics["test"], abs=1e-6
        )
        assert ("test.csv" in shown, "warning" in shown) == (True, False)
    write(Path("test.csv"), "".join([lines[0], *lines[71:]]))
    output, shown = succeed("evaluate", "run", "--quiet")
    assert json.loads(output)["rows"] == 10
    assert "warning" in shown
    assert "warning" not in succeed("evaluate", "run", "--data.test", "test.csv", "--data.delimiter", ";")[1]
    Path("test.csv").unlink()
    status, _, shown = command("evaluate", "run")
    assert (status, "test.csv" in shown) == (2, True)


def test_a_run_without_test_data_requires_it(train: Callable[..., Any], tmp_path: Path, sentiment: dict[str, Path]) -> None:
    train(data={"train": sentiment["train"], "test_share": 0.2})
    for model, fact in ((tmp_path / "run", "test_share"), (tmp_path, "--data.test"), ("user/name", "--data.test")):
        status, _, shown = command("evaluate", model)
        assert (status, fact in shown) == (2, True), shown

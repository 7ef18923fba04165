"""--quiet, --verbose and `quiet_output`: what is printed."""

from pathlib import Path
from typing import Any

import pytest

from nlp_transfer.utils.console import Level, Steps, output_level, prints, quiet_output, say, show_table
from tests.builders import refused, succeed


def print_all() -> None:
    say("a note", "warning: a warning")
    say("a result", level=Level.QUIET)
    say("a detail", level=Level.VERBOSE)
    show_table("a table", ["a"], [["a cell"]])


@pytest.mark.parametrize(
    ("level", "printed"),
    [
        (Level.SILENT, ()),
        (Level.QUIET, ("warning", "result")),
        (Level.NORMAL, ("note", "warning", "result", "table")),
        (Level.VERBOSE, ("note", "warning", "result", "detail", "table")),
    ],
)
def test_each_level_prints_its_lines(level: Level, printed: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with output_level(level):
        print_all()
    shown = capsys.readouterr().err
    assert {word for word in ("note", "warning", "result", "detail", "table") if f"a {word}" in shown} == set(printed)


def test_levels_end_with_their_context_and_nest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Steps, "EVERY", 0.0)
    with quiet_output(), output_level(Level.VERBOSE), Steps("work", 3) as steps:
        steps.advance()
        print_all()
        assert not prints(Level.QUIET)
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), quiet_output(with_warnings=True):
        1 / 0  # noqa: B018
    assert prints(Level.NORMAL)
    assert not prints(Level.VERBOSE)


def test_bars_of_libraries_are_hidden_and_restored() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    with quiet_output():
        assert (logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == (False, True)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()) == before


@pytest.fixture
def flags(tiny: dict[str, Path], sentiment: dict[str, Path], tmp_path: Path) -> list[Any]:
    """Settings of a run of three steps."""
    settings = {
        "model": tiny["bert"],
        "data.train": sentiment["train"],
        "data.test": sentiment["test"],
        "task.text": "text",
        "task.label": "label",
    }
    settings |= {"training.max_steps": 3, "training.logging_steps": 1, "output_dir": tmp_path / "run"}
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.mark.model
def test_train_quietly_prints_warnings_and_the_result(flags: list[Any], tmp_path: Path) -> None:
    lines = succeed("train", "--quiet", *flags)[1].splitlines()
    assert str(tmp_path / "run" / "model") in lines[-1]
    assert "accuracy" in lines[-1]
    assert all(line.startswith("warning:") for line in lines[:-1])
    assert succeed("predict", tmp_path / "run", "a good film", "--quiet")[1] == ""


@pytest.mark.model
def test_train_verbosely_prints_each_logged_step(flags: list[Any]) -> None:
    lines = [line for line in succeed("train", "--verbose", *flags)[1].splitlines() if "gradient norm" in line]
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 2", "step 3"]


def test_quiet_and_verbose_exclude_each_other(flags: list[Any]) -> None:
    with refused("--quiet", "--verbose"):
        from nlp_transfer.cli import cli

        cli.main(["train", "--quiet", "--verbose", *map(str, flags)], standalone_mode=False)

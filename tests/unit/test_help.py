"""Help in groups, with the first or all settings, and shell completion."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from nlp_transfer.cli import cli
from nlp_transfer.commands.options import FIRST_SETTINGS
from nlp_transfer.commands.unknown_flags import check_flags
from nlp_transfer.settings import registry
from nlp_transfer.settings.validation import all_settings
from tests.builders import refused


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), terminal_width=200)
    assert result.exit_code == 0, result.output
    return result.output


def completed(*words: str) -> set[str]:
    complete = ShellComplete(cli, {}, "nlp-transfer", "_NLP_TRANSFER_COMPLETE")
    return {item.value for item in complete.get_completions(list(words[:-1]), words[-1])}


def test_help_lists_every_command_in_one_group() -> None:
    lines = shown("--help").splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in cli.commands]
    assert sorted(listed) == sorted(cli.commands)
    assert listed.index("train") < listed.index("runs") < listed.index("compare") < listed.index("push")


def test_train_lists_the_first_settings_or_all() -> None:
    first, everything = shown("train", "--help"), shown("train", "--help-all")
    names = {name for name, _, _ in all_settings()}
    assert set(FIRST_SETTINGS) <= names
    assert {name for name in names if f"--{name} [" in first} == set(FIRST_SETTINGS)
    assert {name for name in names if f"--{name} [" in everything} == names
    assert "--help-all" not in shown("evaluate", "--help")


@pytest.mark.parametrize("command", ["predict", "evaluate", "translate", "train"])
def test_each_setting_is_listed_once(command: str) -> None:
    """Those that several tasks have, with the default and the meaning in each of them."""
    text = shown(command, "--help-all" if command == "train" else "--help")
    listed = re.findall(r"^  --([a-z]+[.][a-z_.]+) \[", text, re.MULTILINE)
    assert len(listed) == len(set(listed)) > 3
    words = " ".join(text.split())
    if command != "translate":
        assert "multi_label: Minimum probability" in words
        assert "text_classification: Minimum probability" in words


def test_first_settings_are_described_for_the_default_task() -> None:
    lines = shown("train", "--help").splitlines()
    for name in ("task.text", "task.label"):
        [line] = [line for line in lines if f"--{name} [" in line]
        assert not any(f" {task}: " in line for task in registry.names("task")), line


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ("cross-validate a.csv --fold 3", ["--fold", "'--folds'"]),
        ("train a.csv --folds 3", ["--folds", "cross-validate"]),
        ("tune a.csv --dry-run", ["--dry-run", "option of train"]),
        ("predict runs/a --probabilitys text", ["'--probabilities'"]),
        ("evaluate runs/a --folds=3", ["cross-validate"]),
    ],
)
def test_flags_of_other_commands_are_explained(arguments: str, facts: list[str]) -> None:
    with refused(*facts):
        cli.main(arguments.split(), standalone_mode=False)


@pytest.mark.parametrize(
    "flags", ["--strategy lora", "--output-dir x", "--training.epochs 3", "--lr 3", "--batch-size 8", "--output x"]
)
def test_names_of_settings_are_left_to_the_settings(flags: str) -> None:
    for name in ("train", "tune"):
        command = cli.commands[name]
        if flags.split()[0] not in {flag for parameter in command.params for flag in parameter.opts}:
            check_flags(command, click.Context(command, parent=click.Context(cli)), ["a.csv", *flags.split()])


def test_commands_options_and_settings_are_completed() -> None:
    assert completed("tra") == {"train", "translate"}
    assert {"--quiet", "--dry-run"} <= completed("train", "--")
    assert completed("train", "--training.ep") == {"--training.epochs"}
    assert completed("evaluate", "m", "--data.te") == {"--data.test"}
    assert completed("evaluate", "m", "--training.ep") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str) -> None:
    script = shown("completion", shell)
    assert "_NLP_TRANSFER_COMPLETE" in script
    assert "nlp-transfer" in script


@pytest.mark.process
def test_bash_completes_through_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_NLP_TRANSFER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "nlp-transfer eva")
    monkeypatch.setenv("COMP_CWORD", "1")
    program = "import sys; sys.argv = ['nlp-transfer']; from nlp_transfer.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "plain,evaluate", done.stderr

"""Read the settings of a command from its file and its flags. Heavy modules are only imported when a command runs."""

from collections.abc import Sequence
from typing import Any

import click

from nlp_transfer.utils.errors import UserError


def run_document(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a run: those of a YAML file, or those inferred from a table. Flags override them.

    Args:
        arguments: FILE, which may be missing, and the flags of settings.
    """
    from nlp_transfer.commands.completion import complete, prompt
    from nlp_transfer.commands.file_argument import is_document, split_arguments
    from nlp_transfer.run.document import read_document
    from nlp_transfer.utils.console import say

    file, flags = split_arguments(arguments)
    if file is not None and is_document(file):
        return merged(read_document(file), flags)
    document = merged({} if file is None else {"data": {"train": file}}, flags)
    document, notes = complete(document, prompt())
    say(*notes)
    return document


def merged(document: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings with those given as flags, and print what that changes."""
    from nlp_transfer.run.document import merge, parse_overrides
    from nlp_transfer.utils.console import say

    merged, notes = merge(document, parse_overrides(arguments))
    say(*notes)
    return merged


def with_recorded_test(model: str, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of an evaluation, with the test data that the run recorded unless `data.test` is given.

    Returns:
        The settings, and the recorded SHA-256 of the test files; an empty list if `data.test` is given.
    """
    from nlp_transfer.run.recorded_test import recorded_test
    from nlp_transfer.utils.console import say

    data = settings.get("data", {})
    if data.get("test") is not None:
        return settings, []
    recorded = recorded_test(model)
    say(f"data.test: {recorded.data['test']} (recorded by the run)")
    return {**settings, "data": {**recorded.data, **data}}, recorded.hashes


def model_settings(ctx: click.Context, arguments: Sequence[str]) -> dict[str, Any]:
    """Parse the settings of a command that uses a saved model.

    Raises:
        UserError: a setting is unknown or has no effect on this command.
    """
    from nlp_transfer.run.document import merge, parse_overrides
    from nlp_transfer.settings.applicability import check_arguments
    from nlp_transfer.settings.validation import all_settings, suggest

    document, _ = merge({}, parse_overrides(arguments))
    if unknown := sorted(set(document) - {"data", "task"}):
        raise UserError(f"--{unknown[0]}: not a setting of this command{suggest(unknown[0])}; allowed: --data.NAME, --task.NAME")
    check_arguments(str(ctx.command.name), document, [name for name, _, _ in all_settings()])
    return document

"""Explain flags that are neither options of a command nor settings."""

from collections.abc import Sequence
from difflib import get_close_matches

import click

from nlp_transfer.utils.errors import UserError


def check_flags(command: click.Command, ctx: click.Context, arguments: Sequence[str]) -> None:
    """Check flags that may be mistyped, or belong to another command. Other unknown names are reported as settings.

    Raises:
        UserError: a flag resembles an option of this command, or is an option of other commands and has no name of a setting.
    """
    own = _flags_of(command)
    before_texts = arguments[: arguments.index("--") if "--" in arguments else None]
    given = [argument.partition("=")[0] for argument in before_texts if argument.startswith("--")]
    if all("." in flag or flag in own for flag in given):
        return
    from nlp_transfer.settings.validation import FOREIGN_NAMES, all_settings

    sections = {name.partition(".")[0] for name, _, _ in all_settings()}
    unknown = [flag for flag in given if flag not in own and _name(flag.partition(".")[0]) not in sections]
    settings = {name.rpartition(".")[2] for name, _, _ in all_settings()}
    settings |= {word for words in FOREIGN_NAMES.values() for word in words.split()}
    group = ctx.parent.command if ctx.parent else None
    others = group.commands.values() if isinstance(group, click.Group) else ()
    for flag in unknown:
        owners = [str(other.name) for other in others if flag in _flags_of(other)]
        if not owners and (near := get_close_matches(flag, own, n=1, cutoff=0.85)):
            raise UserError(f"{flag}: unknown option of {command.name} (did you mean {near[0]!r}?); see --help")
        if owners and _name(flag) not in settings:
            raise UserError(f"{flag}: is an option of {', '.join(owners)}, not of {command.name}; leave it out")


def _name(flag: str) -> str:
    """Return the name of the setting that a flag would be."""
    return flag[2:].replace("-", "_")


def _flags_of(command: click.Command) -> set[str]:
    """Return the long names of the options of a command."""
    return {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")} | {"--help"}

"""Shared command-line options, flags with several values, and help that lists the settings of a command."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from nlp_transfer.commands.unknown_flags import check_flags
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import UserError

# Context settings of commands that accept settings as flags.
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


LEVEL, SHOW_ALL = "nlp_transfer.level", "nlp_transfer.show_all"  # keys of `click.Context.meta`


def _load_code(ctx: click.Context, parameter: click.Parameter, files: tuple[str, ...]) -> None:
    if files:
        from nlp_transfer.settings.extensions import load_code

        with importing():
            load_code(files)


def _keep_level(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Remember the output level, which `SettingsHelp.invoke` applies.

    Raises:
        UserError: both --quiet and --verbose are given.
    """
    if not given:
        return
    if ctx.meta.setdefault(LEVEL, parameter.name) != parameter.name:
        raise UserError("--quiet and --verbose exclude each other; leave one of them out")


CODE = click.option(
    "--code",
    metavar="FILE.py",
    multiple=True,
    expose_value=False,
    callback=_load_code,
    help="Python file that defines classes or functions, which settings name as FILE:NAME. Can be repeated.",
)
PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp32", "auto", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp32: the same results on every machine. auto: the fastest format that this machine supports.",
)
SEEDS = click.option(
    "--seeds",
    multiple=True,
    default=("0", "1", "2"),
    metavar="SEED ...",
    help="Seeds of the compared runs; trials of tune have the first one.  [default: 0 1 2]",
)
BACKEND = click.option(
    "--backend",
    type=click.Choice(["auto", "torch", "onnx", "openvino", "ctranslate2"]),
    default="auto",
    show_default=True,
    help="The engine that runs the model. auto: the one that the folder was exported for, or torch; and for large files on a "
    "CPU, OpenVINO if it is installed.",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace existing output.")
BATCH_SIZE = click.option("--batch-size", type=click.IntRange(min=1), help="Rows per batch.  [default: the fastest]")
BEAMS = click.option(
    "--beams",
    type=click.IntRange(min=1),
    help="For generated text: beams of the search; 1: greedy.  [default: as in the model]",
)
BASE = click.option("--base", metavar="MODEL", help="Base model of an adapter, if it was moved.  [default: as recorded]")


def _show_all(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given:
        ctx.meta[SHOW_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


HELP_ALL = click.option(
    "--help-all", is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help="Show all settings and exit."
)
QUIET = click.option(
    "--quiet", is_flag=True, expose_value=False, callback=_keep_level, help="Print only warnings, errors and results."
)
VERBOSE = click.option(
    "--verbose", is_flag=True, expose_value=False, callback=_keep_level, help="Also print details, such as each logged step."
)
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Check everything, take a few steps, estimate time and memory, and stop. Nothing is written."
)
FILE_OPTIONS = (
    click.argument("texts", nargs=-1, metavar="[TEXT]...", type=click.UNPROCESSED),
    click.option(
        "--input",
        "source",
        type=click.Path(path_type=Path),
        help="A CSV, TSV, JSONL, Parquet or .txt file, or - for standard input.",
    ),
    click.option(
        "--output",
        type=click.Path(path_type=Path),
        help="A file, whose extension determines the format, as for --input; or - for standard output.",
    ),
    click.option(
        "--format",
        "form",
        type=click.Choice(["csv", "tsv", "jsonl", "parquet", "txt"]),
        help="Format of standard input and output.  [default: txt, one text per line; for output, the format of the input]",
    ),
    OVERWRITE,
    click.option("--notes", is_flag=True, help="Add a column `note` that says why a row has no prediction."),
    BATCH_SIZE,
    PRECISION,
    click.option(
        "--processes",
        type=int,
        default=1,
        show_default=True,
        help="Number of processes that share the rows of a file, for CPUs with many cores. Each loads the model.",
    ),
    CODE,
    BASE,
    BACKEND,
    QUIET,
)
TRAINING_OPTIONS = (
    click.option(
        "--resume",
        type=click.Choice(["auto", "must", "never"]),
        default="auto",
        show_default=True,
        help="auto: resume the unfinished run in output_dir, if there is one. must: only resume. never: only start a new run.",
    ),
    CODE,
    click.option("--allow-hub-metrics", is_flag=True, help="Allow training.hub_metrics to download and run code from the hub."),
    click.option("--push-to", metavar="USER/NAME", help="Push the finished run to the hub; a new repository is private."),
    QUIET,
    VERBOSE,
    HELP_ALL,
)


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the context, and add the parameters of a command that takes texts or files."""
    return click.pass_context(_with_all(FILE_OPTIONS, command))


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a training run that are not settings."""
    return _with_all(TRAINING_OPTIONS, command)


def _with_all(parameters: Sequence[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    for parameter in reversed(parameters):
        command = parameter(command)
    return command


GROUPS = {
    "First steps": ("init", "train", "evaluate", "predict", "translate"),
    "Understand the results": ("report", "explain", "label-errors", "runs"),
    "Find better settings": ("compare", "cross-validate", "tune"),
    "Use the model elsewhere": ("embed", "export", "trim-vocabulary", "serve", "push"),
}
FIRST_SETTINGS = (
    "model", "data.train", "data.validation", "data.test", "data.test_share", "task.name", "task.text", "task.label",
    "strategy.name", "training.epochs", "training.batch_size", "training.learning_rate", "training.seed", "output_dir",
)  # fmt: skip
"""The settings in the help of commands that take all settings; `--help-all` lists the others too."""


class CommandGroups(click.Group):
    """A group that lists its commands by what a beginner needs first; unknown commands come last."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: command for name, command in sorted(self.commands.items()) if not command.hidden}
        rest = tuple(name for name in commands if not any(name in names for names in GROUPS.values()))
        for title, names in {**GROUPS, "Other": rest}.items():
            if rows := [(name, commands[name].get_short_help_str(limit=90)) for name in names if name in commands]:
                with formatter.section(title):
                    formatter.write_dl(rows)


class SettingsHelp(click.Command):
    """A command that lists its settings in its help, and applies --quiet and --verbose.

    A command that takes all settings lists the first ones; `--help-all` lists all.
    """

    def _takes_all(self) -> bool:
        from nlp_transfer.settings.applicability import COMMAND_SETTINGS

        return "*" in COMMAND_SETTINGS[self._settings_of()]

    def _settings_of(self) -> str:
        from nlp_transfer.settings.applicability import COMMAND_SETTINGS

        return str(self.name) if self.name in COMMAND_SETTINGS else "train"  # a recipe uses the settings of `train`

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        items = super().shell_complete(ctx, incomplete)
        if not incomplete.startswith("--"):
            return items
        from nlp_transfer.settings.applicability import takes
        from nlp_transfer.settings.validation import all_settings

        command = self._settings_of()
        names = dict.fromkeys(name for name, _, _ in all_settings() if takes(command, name))
        return items + [CompletionItem(f"--{name}") for name in names if f"--{name}".startswith(incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            check_flags(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        if LEVEL not in ctx.meta:
            return super().invoke(ctx)
        from nlp_transfer.utils.console import Level, output_level

        with output_level(Level[ctx.meta[LEVEL].upper()]):
            return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from nlp_transfer.settings.applicability import takes
        from nlp_transfer.settings.validation import all_settings, merged_settings

        command = self._settings_of()
        settings = [setting for setting in all_settings() if takes(command, setting[0])]
        title = "Settings, as --NAME VALUE [default]"
        if self._takes_all() and not ctx.meta.get(SHOW_ALL):
            # Several tasks may have a setting of the same name; the text that begins with no task is that of the default task.
            general = [setting for setting in settings if not re.match(r"[a-z_]+: ", setting[2])]
            first = {setting[0]: setting for setting in reversed([*general, *settings])}
            settings = [first[name] for name in FIRST_SETTINGS if name in first]
            title = "The first settings, as --NAME VALUE [default]; --help-all lists all"
        with formatter.section(title):
            formatter.write_dl([(f"--{name} [{default}]", text) for name, default, text in merged_settings(settings)])


class TextsHelp(SettingsHelp):
    """A command that takes texts; those after `--` may begin with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            from nlp_transfer.inference.command_inputs import mark_verbatim

            args = mark_verbatim(args)
        return super().parse_args(ctx, args)


class CompareHelp(SettingsHelp):
    """A command that executes several runs, with flags that take several values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, repeat_flags(args, ("--strategies", "--seeds", "--shots", "--rates")))
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "file":
                raise
            raise click.UsageError(
                f"Missing argument 'FILE', which precedes the flags: nlp-transfer {self.name} FILE ...", ctx
            ) from None


def repeat_flags(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """Rewrite `--seeds 0 1 2` as `--seeds=0 --seeds=1 --seeds=2`, for the flags in `names`.

    Raises:
        UserError: one of these flags has no value.
    """
    repeated: list[str] = []
    remaining = list(arguments)
    while remaining:
        flag, equals, value = remaining.pop(0).partition("=")
        if flag not in names:
            repeated.append(flag + equals + value)
            continue
        values = [value] if equals else []
        while remaining and not remaining[0].startswith("--"):
            values.append(remaining.pop(0))
        if not values:
            raise UserError(f"{flag}: needs one or more values: {flag} VALUE ...")
        repeated += [f"{flag}={value}" for value in values]
    return repeated

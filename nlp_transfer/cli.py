"""nlp-transfer: the command line. Nothing heavy is imported before a command runs, so that help answers at once."""

import io
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from nlp_transfer.commands.launcher_messages import error_prefix
from nlp_transfer.commands.options import (
    BASE,
    BATCH_SIZE,
    CODE,
    OVERWRITE,
    PRECISION,
    CompareHelp,
    SettingsHelp,
    TextsHelp,
    how_to_train,
    on_files,
)
from nlp_transfer.security.child_processes import isolated
from nlp_transfer.security.redaction import guard_output
from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.distributed import rank
from nlp_transfer.utils.environment import finish_output, importing, output_is_closed
from nlp_transfer.utils.errors import UserError

CONTEXT = {"help_option_names": ["-h", "--help"]}
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="nlp_transfer")
def cli() -> None:
    """Fine-tune BERT-family models on text, from a data file to a saved, measured model."""


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("arguments", metavar="[FILE]", nargs=-1, type=click.UNPROCESSED)
@how_to_train
@click.pass_context
def train(ctx: click.Context, arguments: tuple[str, ...], **how: Any) -> None:
    """Train as FILE says: settings (YAML), or a table, whose columns, task, model and folder are then found, chosen and printed.

    \b
    nlp-transfer train reviews.yaml --training.epochs 5
    nlp-transfer train reviews.csv
    nlp-transfer train --model ID --data.train reviews.csv --task.text review --task.label stars

    Any setting can be given by its dotted name; without FILE, the data at least (--data.train).
    """
    if not arguments:
        raise click.exceptions.NoArgsIsHelpError(ctx)
    from nlp_transfer.commands.completion import split_arguments

    file, flags = split_arguments(arguments)
    _train(_document(file, flags), how)


def _document(file: str | None, flags: Sequence[str]) -> dict[str, Any]:
    """The document of a run: a file of settings with the flags put in, or what a table and the flags leave open filled in."""
    from nlp_transfer.commands.completion import complete, is_document, prompt
    from nlp_transfer.run.document import read_document
    from nlp_transfer.utils.console import say

    if file is not None and is_document(file):
        return _merged(read_document(file), flags)
    document = _merged({} if file is None else {"data": {"train": file}}, flags)
    document, notes = complete(document, prompt())
    say(*notes)
    return document


def _train(document: Any, how: dict[str, Any]) -> Any:
    with importing():
        from nlp_transfer.fine_tune import fine_tune

    return fine_tune(document, **how)


def _merged(document: Any, arguments: Sequence[str]) -> dict[str, Any]:
    from nlp_transfer.run.document import merge, parse_overrides
    from nlp_transfer.utils.console import say

    merged, notes = merge(document, parse_overrides(arguments))
    say(*notes)
    return merged


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures to this .json file.")
@OVERWRITE
@BATCH_SIZE
@PRECISION
@CODE
@BASE
@click.pass_context
def evaluate(
    ctx: click.Context, model: str, output: Path | None, overwrite: bool, batch_size: int | None, precision: str, base: str | None
) -> None:
    """Score MODEL (a run folder, a model folder or a hub id) on --data.test FILE; figures go to standard output."""
    from nlp_transfer.inference.files import check_figures_file, print_figures, score_source

    check_figures_file(output, overwrite)
    figures, signatures = score_source(model, _only(ctx, ctx.args), batch_size, precision, base)
    print_figures(figures, output, signatures, overwrite)


@cli.command(cls=TextsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--probabilities", is_flag=True, help="Add a column for each label: probability:LABEL.")
@on_files
def predict(ctx: click.Context, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Predict every row of a file with MODEL; rows keep their order and their columns. Or print the predictions of TEXTs.

    A row that cannot be predicted, such as an empty text, gets no prediction and is counted at the end. An interrupted command
    resumes when it is started again. For TEXTs a terminal shows a line each; a pipe or a file gets JSON lines.
    After -- each word is a TEXT, also one that begins with a dash.
    """
    _predict(ctx, model, texts, options)


@cli.command(cls=TextsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--beams", type=click.IntRange(min=1), help="Hypotheses of the beam search; 1: greedy.  [default: the model's]")
@on_files
def translate(ctx: click.Context, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Translate every row of a file with MODEL, or TEXTs; otherwise as predict. Empty texts stay empty."""
    _predict(ctx, model, texts, options)


def _predict(ctx: click.Context, model: str, words: Sequence[str], options: dict[str, Any]) -> None:
    from nlp_transfer.inference.command_inputs import check_inputs, split_words
    from nlp_transfer.inference.files import predict_file, predict_texts, translate_file

    texts, overrides = split_words(words)
    settings = _only(ctx, overrides)
    command = str(ctx.command.name)
    check_inputs(f"nlp-transfer {command} {model}", texts, options)
    if texts:
        wanted = {name: options[name] for name in options.keys() & {"probabilities", "beams", "batch_size", "precision", "base"}}
        predict_texts(wanted | {"model": model, "settings": settings, "translate": command == "translate"}, texts)
    else:
        (translate_file if command == "translate" else predict_file)(model, settings=settings, **options)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option(
    "--public", is_flag=True, help="Make a new repository public; else it is private. One that is there stays as it is."
)
@click.option("--revision", metavar="BRANCH", help="Push to this branch; made from main if it is not there.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Propose the change as a pull request.")
@click.option("--tag", help="Give the pushed commit this new tag.")
@click.option("--adapter", is_flag=True, help="Push the adapter of a run in place of the merged model.")
@click.option("--message", help="Of the commit.")
@CODE
def push(model: Path, repository: str, **how: Any) -> None:
    """Push MODEL (a run folder, a model folder or an adapter folder) to a hub, all of it or nothing.

    The token is HF_TOKEN, or that of `hf auth login`.
    """
    from nlp_transfer.hub.push import push as send

    print(printable(send(model, repository, **how).url))


@cli.command(cls=CompareHelp, context_settings=OVERRIDES)
@click.argument("file")
@click.option(
    "--strategies",
    multiple=True,
    required=True,
    metavar="NAME ...",
    help="The first is the one to compare with. Also '{name: partial, frozen_layers: all}', and several joined by +.",
)
@click.option(
    "--seeds", multiple=True, default=("0", "1", "2"), metavar="SEED ...", help="Each with every strategy.  [default: 0 1 2]"
)
@click.option("--shots", multiple=True, metavar="K ...", help="Rows of each label to learn from, or all; a learning curve.")
@click.option(
    "--rates",
    multiple=True,
    metavar="FACTOR ...",
    help="On each strategy's own learning rate; validation decides, test compares.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder.  [default: output_dir of FILE with -comparison]")
@click.option("--keep-models", is_flag=True, help="Keep the model of each run, not its answers alone.")
@click.option("--verbose", is_flag=True, help="Show what each run prints.")
@CODE
@click.pass_context
def compare(
    ctx: click.Context, file: str, strategies: tuple[str, ...], seeds: tuple[str, ...], shots: tuple[str, ...],
    rates: tuple[str, ...], output: Path | None, keep_models: bool, verbose: bool,
) -> None:  # fmt: skip
    """Fine-tune with several strategies and seeds, measure, and say which strategy to take.

    FILE (settings, or a table as for train) stands before the flags; without it all settings are given as flags. Called again,
    what is finished is not run again.
    """
    from nlp_transfer.commands.completion import split_arguments

    document = _document(*split_arguments([file, *ctx.args]))
    from nlp_transfer.experiments.compare import compare as run

    done = run(document, strategies, seeds, shots or None, rates or None, output, keep_models, verbose)  # type: ignore[arg-type]
    if done.failed:
        sys.exit(1)


def _only(ctx: click.Context, arguments: Sequence[str]) -> dict[str, Any]:
    """The dotted settings of a command that works with a saved model, as a document.

    Raises:
        UserError: one of them has no effect on this command.
    """
    from nlp_transfer.run.document import merge, parse_overrides
    from nlp_transfer.settings.applicability import check_arguments
    from nlp_transfer.settings.validation import all_settings, suggest

    document, _ = merge({}, parse_overrides(arguments))
    parts = ("data", "task")
    if unknown := sorted(set(document) - set(parts)):
        raise UserError(
            f"--{unknown[0]}: not a setting of this command{suggest(unknown[0])}; "
            f"allowed: {', '.join(f'--{part}.NAME' for part in parts)}"
        )
    check_arguments(str(ctx.command.name), document, [name for name, _, _ in all_settings()])
    return document


def recipe(
    config: Any, arguments: Sequence[str] | None = None, *, strategies: Sequence[Any] = (), seeds: Sequence[int] = (0, 1, 2)
) -> Any:
    """Runs a recipe: the settings are code, and the command line may override them as it does those of a file.

    Args:
        config: a RunConfig.
        arguments: null: those of the process.
        strategies: where there are some, they are compared, each with each of the `seeds`.
    """

    @click.command(cls=SettingsHelp, context_settings=OVERRIDES | CONTEXT, help=sys.modules["__main__"].__doc__)
    @how_to_train
    @click.pass_context
    def run(ctx: click.Context, **how: Any) -> Any:
        document = config.model_dump(exclude_unset=True)
        if not strategies:
            return _train(_merged(document, ctx.args), how)
        if given := [name for name in how if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]:
            raise UserError(f"--{given[0].replace('_', '-')}: has no effect on a recipe that compares strategies; leave it out")
        from nlp_transfer.experiments.compare import compare

        return compare(_merged(document, ctx.args), strategies, seeds)

    given = sys.argv[1:] if arguments is None else list(arguments)
    return guarded(lambda: run.main(given, standalone_mode=False))


def guarded(run: Callable[[], Any]) -> Any:
    """Ends the process as the contract says: 2 and a message for what the user can put right, 1 and a traceback for a
    crash, 128 and the signal's number where one arrived. Nothing secret is printed from here on."""
    guard_output()
    try:
        try:
            return _guarded(run)
        finally:
            if not finish_output() and sys.exc_info()[0] is None:
                raise BrokenPipeError
    except BrokenPipeError:
        finish_output()
        sys.exit(141)


def _guarded(run: Callable[[], Any]) -> Any:
    """As `guarded`; raises a BrokenPipeError where nobody reads the output any more."""
    stdout = sys.stdout
    try:
        with isolated():
            return run()
    except UserError as error:
        message = printable(redact(str(error)))
        if (prefix := error_prefix(message)) is not None:
            click.echo(f"{prefix}{message}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        message = printable(redact(usage.getvalue()))
        if (prefix := error_prefix(message)) is not None:
            click.echo(message if rank() == 0 else f"{prefix}{message}", err=True, nl=False)
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        cause = error.__cause__ or error  # click turns an interrupt into its own error
        if str(cause) and rank() == 0:
            click.echo(printable(redact(f"interrupted: {cause}")), err=True)
        sys.exit(getattr(cause, "status", 130))
    except SystemExit:
        if sys.stdout is not stdout:  # click wraps the streams where nobody reads them, and ends with status 1
            raise BrokenPipeError from None
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output_is_closed():
            raise
        click.echo(printable(redact(traceback.format_exc())), err=True, nl=False)
        sys.exit(1)
    finally:
        if accelerator := sys.modules.get("nlp_transfer.models.accelerator"):
            accelerator.destroy_process_group()


def main() -> NoReturn:
    """Entry point of the command."""
    guarded(lambda: cli.main(standalone_mode=False))
    sys.exit(0)

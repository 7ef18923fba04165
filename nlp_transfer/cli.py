"""The command line `nlp-transfer`. Heavy modules are only imported when a command runs, so that `--help` is fast."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from nlp_transfer.commands import (
    cross_validate,
    embed,
    explain,
    export,
    init,
    list_label_errors,
    report,
    run_list,
    serve,
    shell_completion,
    trim_vocabulary,
    tune,
)
from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.commands.options import (
    BACKEND,
    BASE,
    BATCH_SIZE,
    BEAMS,
    CODE,
    DRY_RUN,
    HELP_ALL,
    OVERRIDES,
    OVERWRITE,
    PRECISION,
    QUIET,
    SEEDS,
    CommandGroups,
    CompareHelp,
    SettingsHelp,
    TextsHelp,
    file_options,
    training_options,
)
from nlp_transfer.commands.run_settings import merged, model_settings, run_document, with_recorded_test
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import UserError

CONTEXT = {"help_option_names": ["-h", "--help"]}


@click.group(cls=CommandGroups, context_settings=CONTEXT)
@click.version_option(package_name="nlp_transfer")
def cli() -> None:
    """Fine-tune BERT-family models on text, from a data file to a saved, evaluated model.

    To start: nlp-transfer train reviews.csv
    """


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("arguments", metavar="[FILE]", nargs=-1, type=click.UNPROCESSED)
@training_options
@DRY_RUN
@click.pass_context
def train(ctx: click.Context, arguments: tuple[str, ...], dry_run: bool, **options: Any) -> None:
    """Fine-tune a model.

    FILE is a YAML file with settings, or a table with the training data. For a table, the task, its columns, the model and the
    output folder are inferred and printed.

    \b
    nlp-transfer train reviews.yaml --training.epochs 5
    nlp-transfer train reviews.csv
    nlp-transfer train --model ID --data.train reviews.csv --task.text review --task.label stars

    Any setting can be given as a flag, by its dotted name; flags override FILE. Without FILE, --data.train is required.
    """
    if not arguments:
        raise click.exceptions.NoArgsIsHelpError(ctx)
    document = run_document(arguments)
    if dry_run:
        _dry_run(document, options)
    else:
        _train(document, options)


def _train(document: dict[str, Any], options: dict[str, Any]) -> Any:
    with importing():
        from nlp_transfer.fine_tune import fine_tune

    return fine_tune(document, **options)


def _dry_run(document: dict[str, Any], options: dict[str, Any]) -> None:
    with importing():
        from nlp_transfer.run.dry_run import dry_run

    if options["push_to"]:
        from nlp_transfer.hub.push import check_push

        check_push(options.pop("push_to"))
    dry_run(document, options["resume"], options["allow_hub_metrics"])


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--output", type=click.Path(path_type=Path), help="Also write the metrics to this .json file.")
@OVERWRITE
@BATCH_SIZE
@PRECISION
@CODE
@BASE
@BACKEND
@QUIET
@click.pass_context
def evaluate(
    ctx: click.Context, model: str, output: Path | None, overwrite: bool, batch_size: int | None, precision: str,
    base: str | None, backend: str,
) -> None:  # fmt: skip
    """Compute the metrics of a model on test data.

    MODEL is a run folder, a model folder or a hub id; the test data is --data.test or, for a run, the test data that it recorded.
    Metrics are printed as JSON.
    """
    from nlp_transfer.inference.model_evaluation import check_metrics_file, evaluate_model, print_metrics

    check_metrics_file(output, overwrite)
    settings, hashes = with_recorded_test(model, model_settings(ctx, ctx.args))
    metrics, signatures = evaluate_model(model, settings, batch_size, precision, base, hashes, backend)
    print_metrics(metrics, output, signatures, overwrite)


@cli.command(cls=TextsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--probabilities", is_flag=True, help="Add a column probability:LABEL for each label.")
@BEAMS
@file_options
def predict(ctx: click.Context, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Predict the rows of a file, or TEXTs.

    MODEL is a run folder, a model folder or a hub id. The output contains the rows and columns of --input, in the same order, and
    the predictions. Rows without a prediction, such as empty texts, are counted at the end. If the command is interrupted, run it
    again to resume.

    Predictions of TEXTs are printed: one line each on a terminal, otherwise as JSON lines. After --, every word is a TEXT, even
    if it begins with a dash.
    """
    _predict(ctx, model, texts, options)


@cli.command(cls=TextsHelp, context_settings=OVERRIDES)
@click.argument("model")
@BEAMS
@file_options
def translate(ctx: click.Context, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Translate the rows of a file, or TEXTs.

    Works like predict. Empty texts stay empty.
    """
    _predict(ctx, model, texts, options)


def _predict(ctx: click.Context, model: str, words: Sequence[str], options: dict[str, Any]) -> None:
    from nlp_transfer.inference.command_inputs import FileOptions, check_inputs, split_words
    from nlp_transfer.inference.files import predict_file, predict_texts

    texts, overrides = split_words(words)
    settings = model_settings(ctx, overrides)
    command = str(ctx.command.name)
    check_inputs(f"nlp-transfer {command} {model}", texts, options)
    file_arguments = {field.name: options.pop(field.name) for field in fields(FileOptions)}
    arguments = {"model": model, "settings": settings, "command": command, **options}
    if texts:
        predict_texts(arguments, texts)
    else:
        predict_file(arguments, FileOptions(**file_arguments))


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option(
    "--public", is_flag=True, help="Make a new repository public (default: private). Does not change an existing repository."
)
@click.option("--revision", metavar="BRANCH", help="Push to this branch. It is created from main if missing.  [default: main]")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of pushing to the branch.")
@click.option("--tag", help="Create this tag for the pushed commit.")
@click.option("--adapter", is_flag=True, help="Push the adapter of a run instead of the merged model.")
@click.option("--message", help="Commit message.")
@CODE
def push(model: Path, repository: str, **options: Any) -> None:
    """Push a model to the hub, in one commit.

    MODEL is a run folder, a model folder or an adapter folder. The token is taken from HF_TOKEN or `hf auth login`.
    """
    from nlp_transfer.hub.push import push as push_model

    print(printable(push_model(model, repository, **options).url))


@cli.command(cls=CompareHelp, context_settings=OVERRIDES)
@click.argument("file")
@click.option(
    "--strategies",
    multiple=True,
    required=True,
    metavar="NAME ...",
    help="Names of strategies, settings such as '{name: partial, frozen_layers: all}', or combinations such as "
    "lora+layerwise_lr. The first one is the baseline.",
)
@SEEDS
@click.option("--shots", multiple=True, metavar="K ...", help="Numbers of training rows per label, or `all`: a learning curve.")
@click.option(
    "--rates",
    multiple=True,
    metavar="FACTOR ...",
    help="Factors for the learning rate of each strategy. The best one on the validation split is used.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Output folder.  [default: output_dir of FILE plus -comparison]")
@click.option("--keep-models", is_flag=True, help="Keep the model of each run, not only its predictions.")
@click.option("--verbose", is_flag=True, help="Show the output of each run.")
@QUIET
@HELP_ALL
@CODE
@click.pass_context
def compare(
    ctx: click.Context, file: str, strategies: tuple[str, ...], seeds: tuple[str, ...], shots: tuple[str, ...],
    rates: tuple[str, ...], output: Path | None, keep_models: bool, verbose: bool,
) -> None:  # fmt: skip
    """Compare strategies over several seeds.

    Fine-tunes once per strategy and seed, prints the metrics with confidence intervals, and recommends a strategy. FILE is a YAML
    file or a table, as for train, and must come before the flags. Without FILE, give all settings as flags. If the command is
    interrupted, run it again to resume; finished runs are reused.
    """
    document = run_document([file, *ctx.args])
    with importing():
        from nlp_transfer.experiments.compare import compare as run_comparison

    arguments: Any = (document, strategies, seeds, shots or None, rates or None, output, keep_models, verbose)
    if run_comparison(*arguments).failed:
        sys.exit(1)


# Commands in files of their own; each file defines `command` and imports nothing heavy.
COMMANDS: tuple[click.Command, ...] = (
    list_label_errors.command,
    explain.command,
    embed.command,
    export.command,
    trim_vocabulary.command,
    serve.command,
    init.command,
    run_list.command,
    shell_completion.command,
    cross_validate.command,
    tune.command,
    report.command,
)
for command in COMMANDS:
    cli.add_command(command)


def recipe(
    config: Any, arguments: Sequence[str] | None = None, *, strategies: Sequence[Any] = (), seeds: Sequence[int] = (0, 1, 2)
) -> Any:
    """Fine-tune with the settings in `config`. Flags on the command line override them.

    Args:
        config: a RunConfig.
        arguments: the command line. None means `sys.argv[1:]`.
        strategies: strategies to compare. If empty, the strategy of `config` is used without a comparison.
        seeds: seeds of the comparison.

    Returns:
        The finished run, or the comparison.
    """

    @click.command(cls=SettingsHelp, context_settings=OVERRIDES | CONTEXT, help=sys.modules["__main__"].__doc__)
    @training_options
    @click.pass_context
    def run(ctx: click.Context, **options: Any) -> Any:
        document = config.model_dump(exclude_unset=True)
        if not strategies:
            return _train(merged(document, ctx.args), options)
        if flags := [name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]:
            raise UserError(f"--{flags[0].replace('_', '-')}: has no effect on a recipe that compares strategies; leave it out")
        from nlp_transfer.experiments.compare import compare

        return compare(merged(document, ctx.args), strategies, seeds)

    command_line = sys.argv[1:] if arguments is None else list(arguments)
    return run_command(lambda: run.main(command_line, standalone_mode=False))


def main() -> NoReturn:
    """Run the command `nlp-transfer`."""
    run_command(lambda: cli.main(standalone_mode=False))
    sys.exit(0)

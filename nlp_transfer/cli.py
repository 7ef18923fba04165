"""nlp-transfer: the command line. Nothing heavy is imported before a command runs, so that help answers at once."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from nlp_transfer import __version__
from nlp_transfer.errors import UserError

OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}


class SettingsHelp(click.Command):
    """A command whose help also lists the settings it takes, read off the schema."""

    parts: tuple[str, ...] = ("data", "task")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_settings(formatter, self.parts)


class TrainHelp(SettingsHelp):
    """With every setting of a run."""

    parts = ()


def write_settings(formatter: click.HelpFormatter, parts: tuple[str, ...] = ()) -> None:
    """The settings of some parts of a run (all without), with their defaults."""
    from nlp_transfer import registry
    from nlp_transfer.config import settings_help

    rows = [row for row in settings_help() if row[0] not in ("task", "strategy")]
    rows += [(f"{kind}.name", "required", ", ".join(registry.names(kind))) for kind in registry.FOLDERS]
    rows += [row for kind in registry.FOLDERS for row in registry.settings_of(kind)]
    with formatter.section("Settings, by their dotted name"):
        chosen = [row for row in rows if not parts or row[0].startswith(tuple(f"{part}." for part in parts))]
        formatter.write_dl([(f"--{name} [{default}]", text) for name, default, text in chosen])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Fine-tune BERT-family models on text, from a data file to a saved, measured model."""


@cli.command(cls=TrainHelp, context_settings=OVERRIDES)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--allow-hub-metrics", is_flag=True, help="Let training.hub_metrics download and run foreign code.")
@click.pass_context
def train(ctx: click.Context, file: Path, allow_hub_metrics: bool) -> None:
    """Train as FILE (YAML) says. Any setting can be given by its dotted name: --training.epochs 5."""
    from nlp_transfer.console import say
    from nlp_transfer.document import merge, parse_overrides, read_document

    document, notes = merge(read_document(file), parse_overrides(ctx.args))
    say(*notes)
    from nlp_transfer.fine_tune import fine_tune

    fine_tune(document, allow_hub_metrics=allow_hub_metrics)


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures to this .json file.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.pass_context
def evaluate(ctx: click.Context, model: str, output: Path | None, batch_size: int, precision: str) -> None:
    """Score MODEL (a run folder, a model folder or a hub id) on --data.test FILE; figures go to standard output."""
    from nlp_transfer.streaming import check_figures_file, evaluate_source, print_figures

    check_figures_file(output)
    figures = evaluate_source(model, _only(ctx.args, ("data", "task")), batch_size, precision)
    print_figures(figures, output)


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--input", "source", type=click.Path(path_type=Path), required=True, help="CSV, TSV, JSONL, Parquet or .txt.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Same formats; the ending decides.")
@click.option("--probabilities", is_flag=True, help="Add a column for each label: probability:LABEL.")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.pass_context
def predict(
    ctx: click.Context, model: str, source: Path, output: Path, probabilities: bool, batch_size: int, precision: str
) -> None:
    """Answer every row of a file with MODEL; rows keep their order and their columns."""
    from nlp_transfer.streaming import predict_file

    predict_file(model, source, output, _only(ctx.args, ("data", "task")), probabilities, batch_size, precision)


@cli.command(cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--input", "source", type=click.Path(path_type=Path), required=True, help="CSV, TSV, JSONL, Parquet or .txt.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Same formats; the ending decides.")
@click.option("--beams", type=click.IntRange(min=1), help="Hypotheses of the beam search; 1: greedy.  [default: the model's]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.pass_context
def translate(
    ctx: click.Context, model: str, source: Path, output: Path, beams: int | None, batch_size: int, precision: str
) -> None:
    """Translate every row of a file with MODEL; rows keep their order, and empty ones stay empty."""
    from nlp_transfer.streaming import translate_file

    translate_file(model, source, output, _only(ctx.args, ("data", "task")), batch_size, precision, beams)


class CompareHelp(TrainHelp):
    """With flags that take several values."""

    several = ("--strategies", "--seeds", "--shots", "--rates")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from nlp_transfer.comparison.flags import expand

        try:
            return super().parse_args(ctx, expand(args, self.several))
        except click.MissingParameter as error:
            if error.param is None or error.param.name != "file":
                raise
            raise click.UsageError(
                "Missing argument 'FILE', which stands before the flags: nlp-transfer compare FILE --strategies NAME ...", ctx
            ) from None


@cli.command(cls=CompareHelp, context_settings=OVERRIDES)
@click.argument("file", type=click.Path(path_type=Path))
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
@click.option("--rates", multiple=True, metavar="FACTOR ...", help="On each strategy's own learning rate; validation decides.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder.  [default: output_dir of FILE with -comparison]")
@click.option("--keep-models", is_flag=True, help="Keep the model of each run, not its answers alone.")
@click.option("--verbose", is_flag=True, help="Show what each run prints.")
@click.pass_context
def compare(
    ctx: click.Context, file: Path, strategies: tuple[str, ...], seeds: tuple[str, ...], shots: tuple[str, ...],
    rates: tuple[str, ...], output: Path | None, keep_models: bool, verbose: bool,
) -> None:  # fmt: skip
    """Fine-tune with several strategies and seeds, measure, and say which strategy to take.

    FILE stands before the flags. Called again, what is finished is not run again.
    """
    from nlp_transfer.console import say
    from nlp_transfer.document import merge, parse_overrides, read_document

    document, notes = merge(read_document(file), parse_overrides(ctx.args))
    say(*notes)
    from nlp_transfer.compare import compare as run

    done = run(document, strategies, seeds, shots or None, rates or None, output, keep_models, verbose)  # type: ignore[arg-type]
    if done.failed:
        sys.exit(1)


def _only(arguments: Sequence[str], parts: tuple[str, ...]) -> dict[str, Any]:
    """Dotted settings of some parts, as a document."""
    from nlp_transfer.document import merge, parse_overrides

    document, _ = merge({}, parse_overrides(arguments))
    if unknown := sorted(set(document) - set(parts)):
        raise UserError(
            f"--{unknown[0]}: not a setting of this command; allowed: {', '.join(f'--{part}.NAME' for part in parts)}"
        )
    return document


def recipe(config: Any, arguments: Sequence[str] | None = None) -> Any:
    """Runs a recipe: the settings are code, and the command line may override them as it does those of a file."""

    given = sys.argv[1:] if arguments is None else list(arguments)

    def run() -> Any:
        if {"-h", "--help"} & set(given):
            formatter = click.HelpFormatter(width=100)
            write_settings(formatter)
            click.echo(f"{sys.modules['__main__'].__doc__ or ''}\n{formatter.getvalue()}")
            return None
        from nlp_transfer.console import say
        from nlp_transfer.document import merge, parse_overrides
        from nlp_transfer.fine_tune import fine_tune

        document, notes = merge(config.model_dump(exclude_unset=True), parse_overrides(given))
        say(*notes)
        return fine_tune(document)

    return guarded(run)


def guarded(run: Callable[[], Any]) -> Any:
    """Ends the process as the contract says: 2 and a message for what the user can put right, 1 and a traceback for a
    crash."""
    try:
        return run()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.exceptions.Exit, click.Abort) as error:
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    finally:
        if device := sys.modules.get("nlp_transfer.training.device"):
            device.leave_group()


def main() -> NoReturn:
    """Entry point of the command."""
    guarded(lambda: cli.main(standalone_mode=False))
    sys.exit(0)

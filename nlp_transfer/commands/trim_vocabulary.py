"""The command `trim-vocabulary`."""

from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, OVERRIDES, OVERWRITE, QUIET, SettingsHelp
from nlp_transfer.commands.run_settings import model_settings
from nlp_transfer.utils.environment import importing


@click.command("trim-vocabulary", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option(
    "--texts", multiple=True, metavar="FILE",
    help="A CSV, TSV, JSONL, Parquet or .txt file with texts that the vocabulary must cover; can be repeated.  [default: the "
    "training rows of the run]",
)  # fmt: skip
@click.option(
    "--column", "columns", multiple=True, help="The column with the text; twice for pairs.  [default: as in training, or text]"
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: exports/trimmed in the run folder]")
@OVERWRITE
@CODE
@QUIET
@click.pass_context
def command(
    ctx: click.Context, model: str, texts: tuple[str, ...], columns: tuple[str, ...], output: Path | None, overwrite: bool
) -> None:
    """Make a model smaller by dropping tokens that never occur.

    MODEL is a run folder, a model folder or a hub id, fine-tuned or not. The folder that is written is a model like MODEL, for
    predict, train, export and push, with the same predictions for the texts. Other words become shorter pieces; --data.validation
    FILE reports for how many texts.

    \b
    nlp-transfer trim-vocabulary runs/spam
    nlp-transfer trim-vocabulary FacebookAI/xlm-roberta-base --texts german.txt --output models/xlm-roberta-german
    """
    settings = model_settings(ctx, ctx.args)
    with importing():
        from nlp_transfer.export.trimmed_model import trim_vocabulary
    from nlp_transfer.utils.console import say

    say(f"the model is {trim_vocabulary(model, texts, output, columns, settings.get('data'), overwrite).folder}")

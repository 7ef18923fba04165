"""The command `export`."""

from pathlib import Path

import click

from nlp_transfer.commands.options import CODE, OVERRIDES, OVERWRITE, QUIET, SettingsHelp
from nlp_transfer.commands.run_settings import model_settings
from nlp_transfer.utils.environment import importing


@click.command("export", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--to", type=click.Choice(["onnx", "openvino"]), required=True, help="The engine that will run the model.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16: half the size (openvino). int8: a quarter of the size, and faster; calibrated on training rows.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: exports/ in the run folder]")
@click.option(
    "--max-loss", type=click.FloatRange(min=0), default=0.005, show_default=True,
    help="Refuse an export whose validation metric is worse by more than this.",
)  # fmt: skip
@OVERWRITE
@CODE
@QUIET
@click.pass_context
def command(
    ctx: click.Context, model: str, to: str, precision: str, output: Path | None, max_loss: float, overwrite: bool
) -> None:
    """Export a model with a head to ONNX or OpenVINO.

    MODEL is a run folder, a model folder or a hub id. The export is compared with the trained model on the validation rows of the
    run, or on those of --data.validation, before it is kept. predict, evaluate and load_predictor accept the folder, and its
    predict.py runs without torch.

    \b
    nlp-transfer export runs/spam --to openvino --precision int8
    nlp-transfer predict runs/spam/exports/openvino-int8 --input new.csv --output predictions.csv
    """
    settings = model_settings(ctx, ctx.args)
    with importing():
        from nlp_transfer.export.export import export_model
    from nlp_transfer.utils.console import say

    say(f"the export is {export_model(model, to, precision, output, settings.get('data'), max_loss, overwrite).folder}")

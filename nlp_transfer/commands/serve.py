"""The command `serve`."""

from pathlib import Path
from typing import Any

import click

from nlp_transfer.commands.options import BACKEND, BASE, BATCH_SIZE, CODE, OVERRIDES, PRECISION, QUIET, SettingsHelp
from nlp_transfer.commands.run_settings import model_settings
from nlp_transfer.utils.environment import importing


@click.command("serve", cls=SettingsHelp, context_settings=OVERRIDES)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. The default is this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one, which is printed.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), metavar="FILE",
    help="Require the token in this file.  [default: the environment variable NLP_TRANSFER_TOKEN, if it is set]",
)  # fmt: skip
@click.option("--max-texts", type=click.IntRange(min=1), default=256, show_default=True, help="Rows in one request.")
@click.option(
    "--max-characters", type=click.IntRange(min=1), default=200_000, show_default=True, help="Characters in one request."
)
@click.option("--queue", type=click.IntRange(min=1), default=2048, show_default=True, help="Rows that wait for a prediction.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
    help="Seconds for receiving a request, and for its prediction.",
)  # fmt: skip
@BATCH_SIZE
@PRECISION
@BACKEND
@BASE
@CODE
@QUIET
@click.pass_context
def command(
    ctx: click.Context, model: str, host: str, port: int, token_file: Path | None, max_texts: int, max_characters: int,
    queue: int, timeout: float, **loading: Any,
) -> None:  # fmt: skip
    """Serve a model over HTTP, with a page to try it.

    MODEL is a run folder, a model folder, an export or a hub id. POST /predict with {"texts": ["a text"]} returns
    {"predictions": [...]}, in the same order. /docs describes all requests.

    \b
    nlp-transfer serve runs/spam
    nlp-transfer serve runs/spam/exports/openvino-int8 --port 9000
    curl localhost:8000/predict --json '{"texts": ["Claim your free prize"]}'
    """
    settings = model_settings(ctx, ctx.args)
    with importing():
        from nlp_transfer.serving.app import Limits
        from nlp_transfer.serving.server import Address, serve

    serve(Address(host, port, token_file), Limits(max_texts, max_characters, queue, timeout), model, settings, **loading)

"""Worker of `prediction`: exports a run for other engines. The rows for checking also calibrate int8."""

from pathlib import Path
from typing import Any

from protocol import Channel

from nlp_transfer.export.exporter import export_model

channel = Channel()


def turn(request: dict[str, Any]) -> dict[str, Any]:
    """Return the folder of an export and the bytes of its graph."""
    folder = Path(request["output"])
    export = export_model(
        request["run"], request["to"], request["precision"], output=folder, data={"validation": request["rows"]}, max_loss=1,
        overwrite=True, settings=request.get("settings"),
    )  # fmt: skip
    return {"folder": str(export.folder), "bytes": export.report["bytes"]}


channel.serve(turn)

"""`log.jsonl` and the trackers: the same figures, from the main process alone."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator


class RunLog:
    """Appends a line a call; figures of validation are nested in the file and prefixed in trackers."""

    def __init__(self, accelerator: Accelerator, output_dir: Path | None) -> None:
        self.accelerator = accelerator
        self.path = output_dir / "log.jsonl" if output_dir is not None and accelerator.is_main_process else None

    def write(self, step: int, **fields: Any) -> None:
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **fields}) + "\n")
        validation = {f"validation/{name}": value for name, value in fields.pop("validation", {}).items()}
        self.accelerator.log({f"train/{name}": value for name, value in fields.items()} | validation, step=step)

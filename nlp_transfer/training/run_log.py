"""`log.jsonl` and the trackers: the same figures, from the main process alone."""

import json
import math
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nlp_transfer.security.file_locks import read_own
from nlp_transfer.utils.atomic_files import append, write_bytes
from nlp_transfer.utils.errors import UserError


class RunLog:
    """Appends a line a call; figures of validation are nested in the file and prefixed in trackers."""

    def __init__(self, accelerator: Accelerator, output_dir: Path | None) -> None:
        self.accelerator = accelerator
        self.path = output_dir / "log.jsonl" if output_dir is not None and accelerator.is_main_process else None

    def drop_after(self, step: int, judged: bool = True) -> None:
        """Drops the lines of later steps, which an interrupted run took and which are about to be taken again; unless `judged`,
        the evaluation after `step` too.

        Raises:
            UserError: the file is a link, a pipe or the like, or too large.
        """
        if self.path is None or not os.path.lexists(self.path):
            return
        try:
            lines = read_own(self.path).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise UserError(f"{self.path}: is not a log of a run ({error}); allowed: remove or rename it to resume") from error
        kept = [line for line in lines if _place_of(line) <= (step, judged)]
        write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, step: int, **fields: Any) -> None:
        if self.path is None:
            return
        validation = fields.pop("validation", {})
        line = {"step": step, **_numbers(fields)} | ({"validation": _numbers(validation)} if validation else {})
        append(self.path, json.dumps(line, allow_nan=False).encode() + b"\n")
        figures = {f"train/{name}": value for name, value in fields.items()}
        figures |= {f"validation/{name}": value for name, value in validation.items()}
        self.accelerator.log(figures, step=step)


def _numbers(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures as JSON can hold them: where gradients overflow, as they may in fp16, their norm is infinite."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _place_of(line: str) -> tuple[float, bool]:
    """The step of a line, and whether it is of an evaluation; a line that cannot be read comes after all others."""
    try:
        found = json.loads(line)
        return float(found["step"]), "validation" in found
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf, True

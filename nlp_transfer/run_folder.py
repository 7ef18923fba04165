"""A run's folder: claimed only when all is known to be well, and never mixed up with another run's."""

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from nlp_transfer.config import shorten
from nlp_transfer.document import read_document
from nlp_transfer.errors import Problems, UserError

OWN = ("config.yaml", "result.json", "log.jsonl", "model", "adapter", "checkpoints", "biases.safetensors", "tasks", "shared")


class RunFolder:
    """`output_dir` of a run: new, unfinished (then it is gone on with) or finished (then it is refused)."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()

    def check(self) -> None:
        """Raises a UserError when a run may not be written here; nothing is created."""
        try:
            self._check()
        except OSError as error:  # a name that is too long, say
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}; allowed: another folder") from None

    def _check(self) -> None:
        if (self.path / "result.json").exists():
            raise UserError(
                f"output_dir: {self.path} already holds a finished run; give another output_dir, or remove the folder"
            )
        if not self.unfinished:
            clash = [name for name in OWN if (self.path / name).exists()]
            if clash:
                raise UserError(f"output_dir: {self.path} already holds {', '.join(clash)}; give another output_dir")
        existing = next((folder for folder in (self.path, *self.path.absolute().parents) if folder.exists()), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"output_dir: {self.path} cannot be written: {existing} is no folder that this user may write in; allowed: a "
                "folder that can be created or written"
            )

    @property
    def unfinished(self) -> bool:
        return (self.path / "config.yaml").is_file() and not (self.path / "result.json").exists()

    def begin(self, document: dict[str, Any]) -> None:
        """Creates the folder and writes `config.yaml`; where a run is unfinished its settings must be the same.

        Raises:
            UserError: other settings than before, or the folder cannot be created.
        """
        if self.unfinished:
            before = read_document(self.path / "config.yaml")
            problems = Problems(
                f"output_dir: {self.path} holds an unfinished run with other settings; finish it, or give another output_dir"
            )
            for name, old, new in differences(before, document):
                problems.add(f"{name}: {shorten(old)} before, {shorten(new)} now")
            problems.raise_if_any()
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            part = self.path / ".part-config.yaml"
            part.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
            os.replace(part, self.path / "config.yaml")
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error}") from error

    def clear_checkpoints(self) -> None:
        """A finished run needs none: `model/` holds its best weights."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in sorted({*before, *now})
            for found in differences(before.get(name), now.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if before == now else [(prefix, before, now)]

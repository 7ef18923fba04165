"""Read the data of a finished run again."""

from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.portable_paths import portable
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.run.document import read_document
from nlp_transfer.run.provenance import check_files
from nlp_transfer.run.resolve import resolve
from nlp_transfer.utils.errors import UserError


def recorded_splits(folder: Path) -> tuple[Splits, Any]:
    """Return the splits of a run, as they were in training, and its task.

    Raises:
        UserError: the folder is not the folder of a run, or its data is gone or has changed.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is not the folder of a run (it has no config.yaml)")
    run = resolve(read_document(path))
    training = run.config.training
    splits, task = read_splits(run.config.data, run.task, training, training.seed, run.strategy.traits.needs_validation)
    recorded = run.config.provenance
    files = {name if name.startswith("hub:") else portable(name): digest for name, digest in splits.provenance().items()}
    check_files(recorded, {"files": files, "model_revision": recorded.get("model_revision")})
    return splits, task

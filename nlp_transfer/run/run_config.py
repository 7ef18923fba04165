"""Create `config.yaml`, which contains all resolved settings of a run, hub revisions and file hashes."""

import os
from typing import Any

from nlp_transfer.data.sources import HUB_DATA
from nlp_transfer.data.sources.portable_paths import portable
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.unused_settings import without_effect
from nlp_transfer.run.provenance import check_files, hash_inputs, hash_strategy, record_inputs
from nlp_transfer.run.run import Run
from nlp_transfer.saved_models.save import versions
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.settings.base_settings import Settings
from nlp_transfer.strategies import nested_tasks


def resolved_document(run: Run) -> dict[str, Any]:
    """Return the content of `config.yaml`, from which the run can be repeated.

    Settings without effect are not resolved. Secrets are redacted.

    Raises:
        UserError: a file or revision differs from the `provenance` in the settings.
    """
    config, strategy, checkpoint, splits, trainer = run.config, run.strategy, run.checkpoint, run.splits, run.trainer
    training = trainer.settings.model_dump() | {
        "label_smoothing": trainer.task.objective(trainer.settings).label_smoothing,
        "precision": trainer.resolved.precision, "attention": trainer.resolved.attention, "kernels": trainer.resolved.kernels,
    }  # fmt: skip
    if strategy.traits.takes_steps:
        training |= {"learning_rate": trainer.planner.learning_rate(), "epochs": trainer.planner.epochs()}
    unused = without_effect(config, run.task, strategy)
    training |= {name: value for name, value in config.training.model_dump().items() if f"training.{name}" in unused}
    further_rows = [job.rows for job, _ in strategy.auxiliary_jobs(trainer.model).values()]
    inputs = hash_inputs(run, checkpoint.source, splits.rows)
    inputs |= hash_strategy(strategy, dict(zip(nested_tasks(strategy), further_rows, strict=True)))
    revisions = {name: revision for name, revision in splits.provenance().items() if name.startswith("hub:")}
    output = os.path.normpath(portable(config.output_dir))
    provenance: dict[str, Any] = {
        "directory": os.getcwd() if os.path.isabs(output) else os.path.relpath(os.getcwd(), output),
        "versions": versions(),
        "processes": trainer.accelerator.num_processes,  # the rows of each step depend on it
    }
    if checkpoint.revision:
        provenance["model_revision"] = checkpoint.revision
    document: dict[str, Any] = {
        "model": f"{checkpoint.source.path}@{checkpoint.revision}" if checkpoint.revision else config.model,
        "data": {name: _pinned(getattr(config.data, name), splits.rows.get(name)) for name in type(config.data).model_fields},
        "task": run.task.document(),
        "strategy": strategy.document(),
        "training": training,
        "output_dir": output,
        "provenance": provenance,
    }
    document = record_inputs(document, inputs, revisions)
    check_files(config.provenance, document["provenance"])
    cleaned: dict[str, Any] = clean(document)
    return cleaned


def _pinned(source: Any, rows: Rows | None) -> Any:
    """Add the revision that was read to a hub id; return nested settings as a document, and any other value unchanged."""
    if isinstance(source, Settings):
        return source.model_dump()
    match = HUB_DATA.match(source) if isinstance(source, str) and rows is not None and rows.revision else None
    if match is None or rows is None:
        return source
    config, split = (f"{mark}{match[part]}" if match[part] else "" for mark, part in ((":", "config"), ("#", "split")))
    return f"{match['id']}@{rows.revision}{config}{split}"

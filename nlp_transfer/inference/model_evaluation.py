"""Score a saved model on a test split, and print or save the metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from nlp_transfer.data.bad_rows import SKIP_HINT, check_rows, describe_skipped, name_skipped
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.aligned_files import check_no_aligned
from nlp_transfer.data.sources.file_reading import kind_of
from nlp_transfer.data.unused_settings import unused_columns
from nlp_transfer.inference.command_inputs import data_settings
from nlp_transfer.inference.standard_streams import writing_stdout
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.utils.atomic_files import to_json, write_json
from nlp_transfer.utils.console import is_main, say, show_metrics
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import Problems, UserError


def evaluate_model(
    model: str,
    settings: dict[str, Any],
    batch_size: int | None,
    precision: str,
    base: str | None = None,
    hashes: Sequence[str] = (),
    backend: str = "auto",
) -> tuple[dict[str, float], dict[str, str]]:
    """Score a saved model on `data.test`, exactly as a run scores its splits.

    The processes of a launcher share the work and all return the same metrics.

    Args:
        hashes: recorded SHA-256 of the files of `data.test`, in order; a warning says if they differ. Empty: there is no check.

    Returns:
        The metrics by name, including the number of rows as `rows`; and a description of how each metric that has several
        conventions was computed (`Scorer.signatures`).

    Raises:
        UserError: the model, a setting or the data cannot be used.
    """
    data = data_settings(settings)
    with importing():
        from nlp_transfer.settings.launch_config import check_launch

        check_launch()
        from nlp_transfer.inference.file_predictor import open_predictor
        from nlp_transfer.inference.scoring import score
        from nlp_transfer.models.accelerator import make_accelerator

    predictor = open_predictor(model, settings, batch_size, precision, base, backend)
    task = predictor.task
    say(*unused_columns(task, data.test))
    columns, problems = [*task.inputs, *task.targets], Problems()
    if not task.traits.aligned:
        check_no_aligned(data, columns, problems)
        problems.raise_if_any()
    accelerator = make_accelerator(TrainingConfig(), "fp32")
    problems = Problems("data", row_hint=SKIP_HINT)
    try:
        rows = check_rows(read_rows(data.test, "test", data, columns, task.traits.readers), "test", data, task.check, problems)
    except UserError as error:
        problems.absorb(error)
    problems.raise_if_any()
    if hashes and list(rows.hashes.values()) != list(hashes):
        changed = [path for path, digest in rows.hashes.items() if digest not in hashes]
        say(
            f"warning: the test data changed after the run: {', '.join(changed) or data.test} is not what {model} recorded; "
            "these are the metrics of the changed data"
        )
    say(*describe_skipped("test", rows), *name_skipped(rows))
    table = predictor.encode(rows, targets=True)
    model_on_device = cast(Any, predictor.model).to(accelerator.device)
    metrics, _ = score(model_on_device, task, table, accelerator, batch_size, predictor.precision)
    say(f"metrics of {len(rows)} rows, computed in {predictor.precision}")
    skipped = {"skipped": len(rows.skipped)} if data.on_bad_rows == "skip" else {}
    return {"rows": len(rows), **skipped, **metrics}, task.scorer.signatures()


def check_metrics_file(output: Path | None, overwrite: bool = False) -> None:
    """Raise a UserError if metrics cannot be written to `output`. Called before the evaluation."""
    if output is None:
        return
    if output.suffix.lower() != ".json":
        raise UserError(f"--output: found the file extension {output.suffix!r} of {output}; allowed: .json")
    allowed = "allowed: a .json file in a folder that exists"
    try:
        if not output.parent.is_dir():
            raise UserError(f"--output: {output} cannot be written; {allowed}")
        kind = kind_of(output)
    except FileNotFoundError:
        return
    except OSError as error:  # such as a circular link
        raise UserError(f"--output: {output} cannot be written ({error.strerror}); {allowed}") from error
    if kind:
        raise UserError(f"--output: {output} is {kind}; {allowed}")
    if not overwrite:
        raise UserError(f"--output: {output} already exists; allowed: another file, or --overwrite to replace it")


def print_metrics(
    metrics: dict[str, float], output: Path | None, signatures: dict[str, str] | None = None, overwrite: bool = False
) -> None:
    """Print metrics as a table on standard error and as JSON on standard output; write them and `signatures` to `output`."""
    if not is_main():
        return
    show_metrics({"test": metrics})
    with writing_stdout():
        print(to_json(metrics), flush=True)
    if output is not None:
        try:
            write_json(output.resolve(), {**metrics, **({"signatures": signatures} if signatures else {})}, overwrite)
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}") from error

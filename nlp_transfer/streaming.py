"""Whole files through a saved model: rows are read, answered and written window by window."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from nlp_transfer.config import DataConfig, TrainingConfig, validate
from nlp_transfer.console import Steps, say, show_metrics
from nlp_transfer.data.bad_rows import SKIP_HINT, check_rows, describe_skipped
from nlp_transfer.errors import Problems, UserError
from nlp_transfer.importing import importing
from nlp_transfer.ordered import in_order
from nlp_transfer.sources import read_rows
from nlp_transfer.sources.aligned import check_no_aligned
from nlp_transfer.sources.reading import format_of, has_lines, kind_of, names_no_format, read_start
from nlp_transfer.sources.tables import ENDINGS, Batch, check_lines, read_table
from nlp_transfer.unused_settings import check_format_settings, unused_columns
from nlp_transfer.workers import Workers, at_once, check_processes, plan
from nlp_transfer.writing import Columns, Writer, replacing

OUTPUTS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")


def _ending(output: Path) -> str:
    """The format of an output; one with another ending holds a line a row, as the lines that it is made from."""
    ending = output.suffix.lower()
    return ending if ending in OUTPUTS else ".txt"


def predict_file(
    model: str,
    source: Path,
    output: Path,
    settings: dict[str, Any],
    probabilities: bool,
    batch_size: int | None,
    precision: str,
    processes: int = 1,
    base: str | None = None,
) -> None:
    """Writes the input's columns and the answers to `output`, whole or not at all.

    Args:
        processes: of this machine that share the work, each with the model and an even share of the cores.
        base: of an adapter, where the model that it was trained on lies now.

    Raises:
        UserError: model, input or output cannot be used, or a process was lost.
    """
    _check_files(source, output, processes, probabilities)
    wanted = {"model": model, "source": source, "settings": settings, "batch_size": batch_size, "precision": precision}
    _answer(wanted | {"probabilities": probabilities, "base": base}, output, "predicting", processes)


def translate_file(
    model: str,
    source: Path,
    output: Path,
    settings: dict[str, Any],
    batch_size: int | None,
    precision: str,
    beams: int | None,
    processes: int = 1,
    base: str | None = None,
) -> None:
    """Writes the input's columns and a column `translation` to `output`, whole or not at all; .txt has a line a text.

    Args:
        processes: of this machine that share the work, each with the model and an even share of the cores.
        base: of an adapter, where the model that it was trained on lies now.

    Raises:
        UserError: model, input or output cannot be used, or a process was lost.
    """
    _check_files(source, output, processes)
    wanted = {"model": model, "source": source, "settings": settings, "batch_size": batch_size, "precision": precision}
    if beams and (settings.get("task") or {}).get("beams") not in (None, beams):
        say(f"no effect: task.beams (--beams {beams} takes its place)")
    in_pieces = _answer(wanted | {"translate": True, "beams": beams, "base": base}, output, "translating", processes)
    if in_pieces:
        say(f"{in_pieces} texts were longer than task.longest_source of the model and were translated in pieces")


def _answer(wanted: dict[str, Any], output: Path, title: str, processes: int) -> int:
    """Answers the windows of a file here or in other processes; gives back how many texts were translated in pieces.

    Args:
        wanted: arguments of `Answers`.
    """
    source, data = wanted["source"], _data_settings(wanted["settings"], wanted["source"])
    read = partial(read_table, source, data, keep_table=_ending(output) != ".txt")  # a line holds the prediction alone
    with at_once():
        if processes == 1:
            with importing():
                from nlp_transfer.answers import Answers
            answers = Answers(**wanted)
            return _write_all(source, output, title, ((batch, answers(batch)) for batch in read(answers.window, answers.columns)))
        say(plan(processes))
        with Workers("nlp_transfer.answers", "Answers", wanted | {"processes": processes}, processes) as workers:
            return _write_all(source, output, title, in_order(read, workers, processes), processes)


def _write_all(
    source: Path, output: Path, title: str, answered: Iterator[tuple[Batch, tuple[Columns, int]]], processes: int = 1
) -> int:
    rows = windows = in_pieces = 0
    progress = Steps(title, _guess_rows(source))
    with replacing(output) as part, progress, Writer(part, _ending(output)) as writer:
        for batch, (found, count) in answered:
            writer.write(found if batch.table is not None else batch.columns | found, batch.table)
            rows, windows, in_pieces = rows + len(batch), windows + 1, in_pieces + count
            progress.advance(len(batch))
    say(f"{rows} rows are in {output}")
    if windows < processes:
        say(f"they were answered in {windows} part{'s' if windows > 1 else ''}, so that more processes had nothing to do")
    return in_pieces


def _check_files(source: Path, output: Path, processes: int, probabilities: bool = False) -> None:
    """Raises a UserError for what would only show after the model was loaded, or after all the work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "found several processes of a launcher; allowed: one, since rows are written in their order to one file. "
            "--processes N shares the work among several"
        )
    problems = Problems()
    check_processes(processes, problems)
    for option, path in (("--input", source), ("--output", output)):
        try:
            path.exists()
        except OSError as error:  # a name that is too long, say
            raise UserError(f"{option}: {path} is no file: {error.strerror}; allowed: a file ({', '.join(ENDINGS)})") from error
    if format_of(source) is None and not names_no_format(source):
        problems.add(f"--input: found the ending {source.suffix!r} of {source}; allowed: {', '.join(ENDINGS)}")
    elif not source.exists():
        problems.add(f"--input: there is no file {source}; allowed: a file that exists ({', '.join(ENDINGS)})")
    elif kind := kind_of(source):
        problems.add(f"--input: {source} is {kind}; allowed: a file ({', '.join(ENDINGS)})")
    elif format_of(source) is None:
        check_lines(source, "text")
    if output.suffix.lower() not in OUTPUTS and not (names_no_format(output) and has_lines(source)):  # lines to lines
        problems.add(f"--output: found the ending {output.suffix!r} of {output}; allowed: {', '.join(OUTPUTS)}")
    elif output.is_dir():
        problems.add(f"--output: {output} is a folder; allowed: a file ({', '.join(OUTPUTS)})")
    elif output.exists() and source.exists() and output.samefile(source):
        problems.add(f"--output: {output} is the input; allowed: another file")
    if probabilities and _ending(output) == ".txt":
        problems.add("--probabilities: a .txt file holds the predictions alone; allowed: an --output with columns, such as .csv")
    problems.raise_if_any()


def evaluate_source(
    model: str, settings: dict[str, Any], batch_size: int | None, precision: str, base: str | None = None
) -> dict[str, float]:
    """Score a saved model on `data.test` as a run scores its splits: all rows at once, so that the metrics are the same.

    Several processes share the work and all get the same metrics.
    """
    return score_source(model, settings, batch_size, precision, base)[0]


def score_source(
    model: str, settings: dict[str, Any], batch_size: int | None, precision: str, base: str | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Like `evaluate_source`; also return the signatures of the metrics, by name."""
    data = _data_settings(settings)
    with importing():
        from nlp_transfer.answers import open_predictor
        from nlp_transfer.inference import score
        from nlp_transfer.training.device import make_accelerator

    predictor = open_predictor(model, settings, batch_size, precision, base)
    say(*unused_columns(predictor.task, data.test))
    if not predictor.task.aligned:
        check_no_aligned(data, predictor.task.columns(), problems := Problems())
        problems.raise_if_any()
    accelerator = make_accelerator(TrainingConfig(), "fp32")
    task, device = predictor.task, accelerator.device
    problems = Problems("data", row_hint=SKIP_HINT)
    try:
        rows = check_rows(read_rows(data.test, "test", data, task.columns()), "test", data, task.check, problems)
    except UserError as error:
        problems.absorb(error)
    problems.raise_if_any()
    say(*describe_skipped("test", rows))
    table = predictor.encode(rows, targets=True)
    metrics, _ = score(cast(Any, predictor.model).to(device), task, table, accelerator, batch_size, predictor.precision)
    say(f"metrics of {len(rows)} rows, computed in {predictor.precision}")
    skipped = {"skipped": len(rows.skipped)} if data.on_bad_rows == "skip" else {}
    return {"rows": len(rows), **skipped, **metrics}, task.signatures()


def check_figures_file(output: Path | None) -> None:
    """Raises a UserError for what would only show after all the work."""
    if output is None:
        return
    if output.suffix.lower() != ".json":
        raise UserError(f"--output: found the ending {output.suffix!r} of {output}; allowed: .json")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output: {output} cannot be written; allowed: a .json file in a folder that exists")


def print_figures(figures: dict[str, float], output: Path | None, signatures: dict[str, str] | None = None) -> None:
    """A table for people on standard error, JSON for programs on standard output; the file also holds the `signatures`."""
    if os.environ.get("RANK", "0") != "0":
        return
    show_metrics({"test": figures})
    print(json.dumps(figures))
    if output is not None:
        from nlp_transfer.export.save import write_json

        try:
            write_json(output, {**figures, **({"signatures": signatures} if signatures else {})})
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}") from error


def _data_settings(settings: dict[str, Any], source: Path | None = None) -> DataConfig:
    """How `source`, or else `data.test`, is read.

    Raises:
        UserError: a setting is wrong, or says nothing about a source of this format.
    """
    problems = Problems("settings")
    data = validate(DataConfig, settings.get("data", {}), problems, "data")
    problems.raise_if_any()
    assert data is not None
    if source is None and data.test is None:
        raise UserError("--data.test: is required and was not given; allowed: a file, a folder or another source of data")
    check_format_settings(data, data.test if source is None else source, problems := Problems())
    problems.raise_if_any()
    return data


def _guess_rows(path: Path) -> int:
    """Rows of a file, as Parquet records them or from the size and the first lines, for the progress bar alone."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return max(1, pq.read_metadata(path).num_rows)
        except (OSError, pa.ArrowException):  # reading says what is wrong
            return 1
    try:
        start = read_start(path, 1 << 16)
    except OSError:  # reading says what is wrong
        return 1
    return max(1, int(path.stat().st_size / max(1, len(start)) * max(1, start.count(b"\n"))))

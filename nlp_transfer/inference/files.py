"""Whole files through a saved model: rows are read, predicted and written window by window."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from nlp_transfer.data.bad_rows import SHOWN, SKIP_HINT, check_rows, describe_skipped, name_skipped
from nlp_transfer.data.sources import read_rows
from nlp_transfer.data.sources.aligned_files import check_no_aligned
from nlp_transfer.data.sources.file_reading import check_unchanged, kind_of, state_of
from nlp_transfer.data.sources.table_reader import Batch, read_table, scan_table
from nlp_transfer.data.unused_settings import check_format_settings, unused_columns
from nlp_transfer.inference.command_inputs import batch_of, check_files, check_not_of_model
from nlp_transfer.inference.ordered import in_order
from nlp_transfer.inference.output_journal import Answer, OutputFile
from nlp_transfer.inference.standard_streams import DASH, OutputStream, opened_input, results, writing
from nlp_transfer.inference.worker_processes import Workers, at_once, plan
from nlp_transfer.inference.writers import Columns, Writer
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.atomic_files import to_json
from nlp_transfer.utils.console import Steps, is_main, say, show_metrics, shown
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import Fault, Problems, UserError


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
    form: str | None = None,
    overwrite: bool = False,
    notes: bool = False,
) -> None:
    """Write the input's columns and the predictions to `output`, whole or not at all.

    Rows that cannot be predicted are counted and keep their place without a prediction. After an interruption the same call
    resumes, with the same bytes in the end.

    Args:
        source, output: files, or `-` for standard input and standard output.
        processes: of this machine that share the work, each with the model and an even share of the cores.
        base: of an adapter, where the model that it was trained on lies now.
        form: format of standard input and output, such as `csv`; None: `txt`, and for output the format of the input.
        overwrite: whether the output may exist.
        notes: whether to add a column `note` that says why a row has no prediction.

    Raises:
        UserError: model, input or output cannot be used, or a process was lost.
    """
    wanted = {"model": model, "settings": settings, "batch_size": batch_size, "precision": precision}
    wanted |= {"probabilities": probabilities, "base": base}
    _predict(wanted, source, output, "predicting", processes, form, overwrite, notes)


def translate_file(
    model: str,
    source: Path,
    output: Path,
    settings: dict[str, Any],
    batch_size: int | None,
    precision: str,
    beams: int | None = None,
    processes: int = 1,
    base: str | None = None,
    form: str | None = None,
    overwrite: bool = False,
    notes: bool = False,
) -> None:
    """Write the input's columns and a column `translation` to `output`; .txt has a line a text. Otherwise as `predict_file`."""
    wanted = {"model": model, "settings": settings, "batch_size": batch_size, "precision": precision}
    if beams and (settings.get("task") or {}).get("beams") not in (None, beams):
        say(f"no effect: task.beams (--beams {beams} takes its place)")
    wanted |= {"translate": True, "beams": beams, "base": base}
    in_pieces = _predict(wanted, source, output, "translating", processes, form, overwrite, notes)
    if in_pieces:
        say(f"{in_pieces} texts were longer than task.longest_source of the model and were translated in pieces")


def _predict(
    wanted: dict[str, Any],
    source: Path,
    output: Path,
    title: str,
    processes: int,
    form: str | None,
    overwrite: bool,
    notes: bool,
) -> int:
    """Predict a file here or in other processes; give back how many texts were translated in pieces.

    Args:
        wanted: arguments of `Answers` but for `source`.
    """
    ending = check_files(source, output, processes, form, overwrite, notes, bool(wanted.get("probabilities")))
    check_not_of_model(output, wanted["model"])
    with at_once(), opened_input(source, form or "txt") as path, _opened_output(output, ending, overwrite) as target:
        data, before = _data_settings(wanted["settings"], path), state_of(path)
        rows, columns = scan_table(path, data)
        texts: list[str] = []  # columns that the model reads, once it is loaded
        types: dict[str, str] = {}  # of the columns that it predicts
        keep_table = ending != ".txt"  # a line holds the prediction alone

        def read(window: int, asked: list[str], identity: dict[str, Any]) -> Iterator[Batch]:
            target.begin(identity)
            texts.extend(asked)
            types.update(identity.get("types", {}))
            for batch in read_table(path, data, window, asked, keep_table, mark_faults=True):
                yield batch if batch.names else _with_all(batch, columns)
            check_unchanged(path, before)

        if processes == 1:
            with importing():
                from nlp_transfer.inference.file_predictor import Answers
            answers = Answers(**wanted, source=path)
            windows = read(answers.window, answers.columns, answers.identity if target.journaled else {})
            predicted = ((batch, target.find(batch) or answers(batch)) for batch in windows)
            return _write_all(target, predicted, Steps(title, rows), _name(source), ending, texts, types, notes)
        say(plan(processes))
        with Workers(
            "nlp_transfer.inference.file_predictor", "Answers", wanted | {"source": path, "processes": processes}, processes
        ) as workers:
            ordered = in_order(read, workers, processes, target.find)
            return _write_all(target, ordered, Steps(title, rows), _name(source), ending, texts, types, notes, processes)


def _with_all(batch: Batch, columns: list[str]) -> Batch:
    """The batch with every column of its file, so that no window differs from another."""
    return replace(batch, columns={name: batch.columns.get(name) or [None] * len(batch) for name in columns})


def _name(path: Path) -> str:
    return "standard input" if path == DASH else str(path)


def _write_all(
    target: OutputFile | OutputStream,
    predicted: Iterator[tuple[Batch, Answer]],
    progress: Steps,
    source: str,
    ending: str,
    texts: list[str],
    types: dict[str, str],
    notes: bool,
    processes: int = 1,
) -> int:
    """Write and record what is predicted; say at the end how many rows have no prediction, and why."""
    rows = windows = in_pieces = 0
    kinds: Counter[str] = Counter()
    shown: list[str] = []
    writer = None
    with progress, ExitStack() as stack:
        for batch, answer in predicted:
            if writer is None:
                part = target.part()
                with target.writing():
                    writer = stack.enter_context(Writer(part, ending, types))
            columns = {} if batch.table is not None else dict(batch.columns)
            if ending == ".parquet":
                columns |= {name: _as_texts(columns[name], answer.faults) for name in texts if name in columns}
            columns |= answer.columns | (_notes(batch, answer.faults) if notes else {})
            target.add(batch, answer)
            with target.writing():
                writer.write(columns, batch.table)
            kinds.update(fault.kind for fault in answer.faults.values())
            for index, fault in islice(answer.faults.items(), SHOWN - len(shown)):
                shown.append(fault.at(f"{source}, row {batch.first + index}"))
            rows, windows, in_pieces = rows + len(batch), windows + 1, in_pieces + answer.in_pieces
            (progress.skip if answer.resumed else progress.advance)(len(batch))
        with target.writing():
            stack.close()
    target.finish()
    say(f"{rows} rows are in {target}" if rows != 1 else f"1 row is in {target}")
    if writer is not None and writer.not_finite:
        say(
            f"warning: NaN and infinite numbers are null in {target}, {writer.not_finite} times, first for row "
            f"{writer.first_not_finite}: JSON has no such numbers; .parquet keeps them, and .csv outside of lists and objects"
        )
    if kinds:
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        more = [f"... and {kinds.total() - len(shown)} more"] if kinds.total() > len(shown) else []
        say(f"warning: {kinds.total()} of {rows} rows have no prediction: {counted}", *shown, *more)
    if windows < processes:
        say(f"they were answered in {windows} part{'s' if windows > 1 else ''}, so that more processes had nothing to do")
    return in_pieces


def _as_texts(cells: list[Any], faults: Mapping[int, Fault]) -> list[Any]:
    """A column of texts in which cells of other types, which have no prediction, are JSON: a Parquet column has one type."""
    bad = {i for i in faults if not isinstance(cells[i], (str, type(None)))}
    return [to_json(cell, ensure_ascii=False) if i in bad else cell for i, cell in enumerate(cells)]


def _notes(batch: Batch, faults: Mapping[int, Fault]) -> Columns:
    if batch.has_column("note"):
        raise UserError("--notes: the input has a column 'note' already; allowed: rename it, or leave --notes out")
    return {"note": [str(faults[i]) if i in faults else None for i in range(len(batch))]}


def predict_texts(wanted: dict[str, Any], texts: Sequence[str]) -> None:
    """Print the predictions of texts of a command line: a line for each, for programs as JSON.

    Args:
        wanted: arguments of `Answers` but for `source`.
        texts: of a model that reads several texts, those of one row after the other.

    Raises:
        UserError: the model cannot be used, or reads another number of texts.
    """
    if wanted["settings"].get("data"):
        raise UserError("--data: has no effect on texts of the command line; leave it out")
    with results() as stream:
        with importing():
            from nlp_transfer.inference.file_predictor import Answers
        answers = Answers(**wanted, source=Path("TEXT"))
        names = answers.columns
        batch = batch_of(texts, names)
        answer = answers(batch)
        with writing():
            if stream.isatty():
                for row in zip(*answer.columns.values(), *batch.columns.values(), strict=True):
                    cells = (f"{cell:.4f}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in row)
                    stream.write(shown("  ".join(cells)) + "\n")
            else:
                Writer(stream, ".jsonl").write(batch.columns | answer.columns)
        say(*(fault.at(f"warning: TEXT {index + 1}") for index, fault in answer.faults.items()))


@contextmanager
def _opened_output(output: Path, ending: str, overwrite: bool) -> Iterator[OutputFile | OutputStream]:
    if output == DASH:
        with results() as stream, OutputStream(stream, ending) as target:
            yield target
    else:
        with OutputFile(output, overwrite) as target:
            yield target


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
        from nlp_transfer.settings.launch_config import check_launch

        check_launch()
        from nlp_transfer.inference.file_predictor import open_predictor
        from nlp_transfer.inference.predictor import score
        from nlp_transfer.models.accelerator import make_accelerator

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
    say(*describe_skipped("test", rows), *name_skipped(rows))
    table = predictor.encode(rows, targets=True)
    metrics, _ = score(cast(Any, predictor.model).to(device), task, table, accelerator, batch_size, predictor.precision)
    say(f"metrics of {len(rows)} rows, computed in {predictor.precision}")
    skipped = {"skipped": len(rows.skipped)} if data.on_bad_rows == "skip" else {}
    return {"rows": len(rows), **skipped, **metrics}, task.signatures()


def check_figures_file(output: Path | None, overwrite: bool = False) -> None:
    """Raises a UserError for what would only show after all the work."""
    if output is None:
        return
    if output.suffix.lower() != ".json":
        raise UserError(f"--output: found the ending {output.suffix!r} of {output}; allowed: .json")
    allowed = "allowed: a .json file in a folder that exists"
    try:
        if not output.parent.is_dir():
            raise UserError(f"--output: {output} cannot be written; {allowed}")
        kind = kind_of(output)
    except FileNotFoundError:
        return
    except OSError as error:  # a link to itself, say
        raise UserError(f"--output: {output} cannot be written ({error.strerror}); {allowed}") from error
    if kind:
        raise UserError(f"--output: {output} is {kind}; {allowed}")
    if not overwrite:
        raise UserError(f"--output: {output} exists already; allowed: another file, or --overwrite to replace it")


def print_figures(
    figures: dict[str, float], output: Path | None, signatures: dict[str, str] | None = None, overwrite: bool = False
) -> None:
    """A table for people on standard error, JSON for programs on standard output; the file also holds the `signatures`."""
    if not is_main():
        return
    show_metrics({"test": figures})
    with writing():
        print(to_json(figures), flush=True)
    if output is not None:
        from nlp_transfer.utils.atomic_files import write_json

        try:
            write_json(output.resolve(), {**figures, **({"signatures": signatures} if signatures else {})}, overwrite)
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

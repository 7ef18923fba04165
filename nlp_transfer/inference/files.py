"""Predict files chunk by chunk, and texts from the command line."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any

from nlp_transfer.data.bad_rows import SHOWN
from nlp_transfer.data.sources.file_reading import check_unchanged, state_of
from nlp_transfer.data.sources.table_reader import Batch, read_table, scan_table
from nlp_transfer.data.sources.task_formats import Readers, record_batches
from nlp_transfer.inference.command_inputs import FileOptions, check_files, check_not_of_model, data_settings, rows_of_texts
from nlp_transfer.inference.output_journal import ChunkPredictions, OutputFile
from nlp_transfer.inference.standard_streams import DASH, OutputStream, opened_input, redirected_stdout, writing_stdout
from nlp_transfer.inference.worker_processes import PredictorPool, describe_processes
from nlp_transfer.inference.writers import Columns, Writer
from nlp_transfer.utils.atomic_files import to_json
from nlp_transfer.utils.console import Steps, say, shown
from nlp_transfer.utils.environment import importing
from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import raise_interrupts


def predict_file(arguments: dict[str, Any], options: FileOptions) -> None:
    """Predict a file: write the input columns and the predictions to the output, completely or not at all.

    Rows that cannot be predicted get null predictions, and are counted at the end. After an interruption, the same call resumes
    and writes the same bytes as an uninterrupted call.

    Args:
        arguments: keyword arguments of `FilePredictor`, without `source` and `processes`.

    Raises:
        UserError: the model, the input or the output cannot be used, or a worker process has ended too early.
    """
    ending = check_files(options, bool(arguments.get("probabilities")))
    check_not_of_model(options.output, arguments["model"])
    beams = arguments.get("beams")
    if beams and (arguments["settings"].get("task") or {}).get("beams") not in (None, beams):
        say(f"no effect: task.beams (--beams {beams} overrides it)")
    form = options.form or "txt"
    with raise_interrupts(), opened_input(options.source, form) as path, _opened_output(options, ending) as target:
        data, before = data_settings(arguments["settings"], path), state_of(path)
        rows, columns = scan_table(path, data)
        output = _Output(target, options, ending, translates=arguments.get("command") == "translate")
        arguments = arguments | {"source": path, "processes": options.processes}

        def read(chunk_rows: int, inputs: list[str], identity: dict[str, Any], readers: Readers) -> Iterator[Batch]:
            target.begin(identity)
            output.inputs, output.types = inputs, identity.get("types", {})
            keep_table = ending != ".txt"  # a line of a .txt file contains only the prediction
            reader = readers.get(path.suffix.lower())
            if (records := reader(path) if reader else None) is not None:
                for chunk in record_batches(records, chunk_rows):
                    yield chunk if chunk.columns else _with_all_columns(chunk, inputs)
            else:
                # Refuses a file of unknown extension that is not plain text, which a reader of the task might have read.
                for chunk in read_table(path, data, chunk_rows, inputs, keep_table, mark_faults=True):
                    yield chunk if chunk.names else _with_all_columns(chunk, columns)
            check_unchanged(path, before)

        progress = Steps("translating" if output.translates else "predicting", rows)
        if options.processes == 1:
            with importing():
                from nlp_transfer.inference.file_predictor import FilePredictor
            predict = FilePredictor(**arguments)
            identity = predict.identity if target.journaled else {}
            chunks = read(predict.chunk_rows, predict.columns, identity, predict.readers)
            output.write_all(((chunk, target.find(chunk) or predict(chunk)) for chunk in chunks), progress)
            return
        say(describe_processes(options.processes))
        with PredictorPool("nlp_transfer.inference.file_predictor", "FilePredictor", arguments, options.processes) as pool:
            output.write_all(pool.predict(read, target.find), progress)


def _with_all_columns(chunk: Batch, columns: list[str]) -> Batch:
    """Return the chunk with every column of its file, so that all chunks have the same columns."""
    return replace(chunk, columns={name: chunk.columns.get(name) or [None] * len(chunk) for name in columns})


@dataclass
class _Output:
    """Writes the chunks of a file with their predictions."""

    target: OutputFile | OutputStream
    options: FileOptions
    ending: str
    translates: bool = False
    inputs: Sequence[str] = ()
    """Columns that the model reads, known once the model is loaded."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Arrow types of the predicted columns, known once the model is loaded."""

    def write_all(self, predicted: Iterator[tuple[Batch, ChunkPredictions]], progress: Steps) -> None:
        """Write and record all predictions; print the number of rows without a prediction, and the reasons."""
        target = self.target
        source = "standard input" if self.options.source == DASH else str(self.options.source)
        rows = chunks = long_texts = 0
        kinds: Counter[str] = Counter()
        examples: list[str] = []
        writer = None
        with progress, ExitStack() as stack:
            for chunk, predictions in predicted:
                if writer is None:
                    file = target.open()
                    with target.writing():
                        writer = stack.enter_context(Writer(file, self.ending, self.types))
                columns = self._columns(chunk, predictions)
                target.add(chunk, predictions)
                with target.writing():
                    writer.write(columns, chunk.table)
                kinds.update(fault.kind for fault in predictions.faults.values())
                for index, fault in islice(predictions.faults.items(), SHOWN - len(examples)):
                    examples.append(fault.at(f"{source}, row {chunk.first + index}"))
                rows, chunks, long_texts = rows + len(chunk), chunks + 1, long_texts + predictions.long_texts
                (progress.skip if predictions.resumed else progress.advance)(len(chunk))
            with target.writing():
                stack.close()
        target.finish()
        say(f"{rows} rows are in {target}" if rows != 1 else f"1 row is in {target}")
        if writer is not None and writer.not_finite:
            say(
                f"warning: NaN and infinite numbers were written to {target} as null, {writer.not_finite} times, first in row "
                f"{writer.first_not_finite}: JSON cannot contain them; .parquet can, and so can .csv, except in lists and objects"
            )
        if kinds:
            counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            more = [f"... and {kinds.total() - len(examples)} more"] if kinds.total() > len(examples) else []
            say(f"warning: {kinds.total()} of {rows} rows have no prediction: {counted}", *examples, *more)
        if chunks < self.options.processes:
            say(f"the input has only {chunks} chunk{'s' if chunks > 1 else ''}, so some processes were idle")
        if long_texts:
            limit, done = ("longest_source", "translated in pieces") if self.translates else ("max_length", "truncated")
            say(f"{long_texts} texts were longer than task.{limit} of the model and were {done}")

    def _columns(self, chunk: Batch, predictions: ChunkPredictions) -> Columns:
        """Return the columns to write after those of the chunk's Arrow table."""
        columns: Columns = {} if chunk.table is not None else dict(chunk.columns)
        faults = predictions.faults
        # A Parquet column has one type, so bad cells that are not text become JSON text.
        for name in [name for name in self.inputs if name in columns and self.ending == ".parquet"]:
            bad = {i for i in faults if not isinstance(columns[name][i], (str, NoneType))}
            columns[name] = [to_json(cell, ensure_ascii=False) if i in bad else cell for i, cell in enumerate(columns[name])]
        columns |= predictions.columns
        if self.options.notes:
            if chunk.has_column("note"):
                raise UserError("--notes: the input already has a column 'note'; allowed: rename it, or leave --notes out")
            notes = predictions.columns.get("note") or [None] * len(chunk)
            columns["note"] = [str(faults[i]) if i in faults else note for i, note in enumerate(notes)]
        return columns


def predict_texts(arguments: dict[str, Any], texts: Sequence[str]) -> None:
    """Print the predictions of texts from the command line: as plain lines on a terminal, otherwise as JSON Lines.

    Args:
        arguments: keyword arguments of `FilePredictor`, without `source`.
        texts: the texts of the first row, then those of the next one, and so on.

    Raises:
        UserError: the model cannot be used, or the number of texts is wrong.
    """
    if arguments["settings"].get("data"):
        raise UserError("--data: has no effect on texts from the command line; leave it out")
    with redirected_stdout() as stream:
        with importing():
            from nlp_transfer.inference.file_predictor import FilePredictor
        predict = FilePredictor(**arguments, source=Path("TEXT"))
        rows = rows_of_texts(texts, predict.columns)
        predictions = predict(rows)
        with writing_stdout():
            if stream.isatty():
                for row in zip(*predictions.columns.values(), *rows.columns.values(), strict=True):
                    cells = (f"{cell:.4f}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in row)
                    stream.write(shown("  ".join(cells)) + "\n")
            else:
                Writer(stream, ".jsonl").write(rows.columns | predictions.columns)
        say(*(fault.at(f"warning: TEXT {index + 1}") for index, fault in predictions.faults.items()))


@contextmanager
def _opened_output(options: FileOptions, ending: str) -> Iterator[OutputFile | OutputStream]:
    if options.output == DASH:
        with redirected_stdout() as stream, OutputStream(stream, ending) as target:
            yield target
    else:
        with OutputFile(options.output, options.overwrite) as target:
            yield target

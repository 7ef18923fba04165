"""Whole files through a saved model: rows are read, answered and written window by window."""

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from nlp_transfer.config import DataConfig, TrainingConfig, validate
from nlp_transfer.console import Steps, say, show_metrics
from nlp_transfer.errors import Problems, UserError
from nlp_transfer.export.load import load_predictor
from nlp_transfer.export.save import write_json
from nlp_transfer.inference import Predictor
from nlp_transfer.sources import read_rows
from nlp_transfer.sources.aligned import check_no_aligned
from nlp_transfer.sources.reading import kind_of, read_start
from nlp_transfer.sources.rows import Rows
from nlp_transfer.sources.tables import ENDINGS
from nlp_transfer.sources.wheels import is_wheel
from nlp_transfer.tasks import task_name
from nlp_transfer.training.device import make_accelerator
from nlp_transfer.translator import Translator, translates

Columns = dict[str, list[Any]]
LINE_END = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # whatever some reader takes for the end of a line


def predict_file(
    model: str, source: Path, output: Path, settings: dict[str, Any], probabilities: bool, batch_size: int | None, precision: str
) -> None:
    """Writes the input's columns and the answers to `output`, whole or not at all.

    Raises:
        UserError: model, input or output cannot be used.
    """
    _check_files(source, output, probabilities)
    data = _data_settings(settings)
    predictor = _open(model, settings, batch_size, precision)
    if translates(predictor.task):
        raise UserError(f"{model}: is a translation model; use nlp-transfer translate")
    _write_all(source, output, "predicting", predictor.predict_batches(source, data, probabilities))


def translate_file(
    model: str, source: Path, output: Path, settings: dict[str, Any], batch_size: int | None, precision: str, beams: int | None
) -> None:
    """Writes the input's columns and a column `translation` to `output`, whole or not at all; .txt has a line a text.

    Raises:
        UserError: model, input or output cannot be used.
    """
    _check_files(source, output)
    data = _data_settings(settings)
    predictor = _open(model, settings, batch_size, precision)
    if not translates(predictor.task):
        raise UserError(f"{model}: is a {task_name(predictor.task)} model, which does not translate; use nlp-transfer predict")
    if beams:
        predictor.task = predictor.task.model_copy(update={"beams": beams})
    translator = Translator(predictor)
    _write_all(source, output, "translating", translator.translate_batches(source, data))
    if translator.in_pieces:
        say(f"{translator.in_pieces} texts were longer than any in training and were translated in pieces")


def _open(model: str, settings: dict[str, Any], batch_size: int | None, precision: str) -> Predictor:
    predictor = load_predictor(model, batch_size, precision, settings.get("task"))
    if precision == "auto":
        say(f"computing in {predictor.precision}, which this machine does fastest; --precision fp32 is the most exact")
    return predictor


def _write_all(source: Path, output: Path, title: str, batches: Iterator[Columns]) -> None:
    rows = 0
    progress = Steps(title, _guess_rows(source))
    with replacing(output) as part, progress, Writer(part, output.suffix.lower()) as writer:
        for columns in batches:
            writer.write(columns)
            count = len(next(iter(columns.values())))
            rows += count
            progress.advance(count)
    say(f"{rows} rows are in {output}")


def _check_files(source: Path, output: Path, probabilities: bool = False) -> None:
    """Raises a UserError for what would only show after the model was loaded, or after all the work."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("found several processes; allowed: one, since rows are written in their order to one file")
    problems = Problems()
    for option, path in (("--input", source), ("--output", output)):
        try:
            path.exists()
        except OSError as error:  # a name that is too long, say
            raise UserError(f"{option}: {path} is no file: {error.strerror}; allowed: a file ({', '.join(ENDINGS)})") from error
    if source.suffix.lower() not in ENDINGS:
        problems.add(f"--input: found the ending {source.suffix!r} of {source}; allowed: {', '.join(ENDINGS)}")
    elif not source.exists():
        problems.add(f"--input: there is no file {source}; allowed: a file that exists ({', '.join(ENDINGS)})")
    elif kind := kind_of(source):
        problems.add(f"--input: {source} is {kind}; allowed: a file ({', '.join(ENDINGS)})")
    if output.suffix.lower() not in ENDINGS:
        problems.add(f"--output: found the ending {output.suffix!r} of {output}; allowed: {', '.join(ENDINGS)}")
    elif output.is_dir():
        problems.add(f"--output: {output} is a folder; allowed: a file ({', '.join(ENDINGS)})")
    elif output.exists() and source.exists() and output.samefile(source):
        problems.add(f"--output: {output} is the input; allowed: another file")
    if probabilities and output.suffix.lower() == ".txt":
        problems.add("--probabilities: a .txt file holds the predictions alone; allowed: an --output with columns, such as .csv")
    problems.raise_if_any()


def evaluate_source(model: str, settings: dict[str, Any], batch_size: int | None, precision: str) -> dict[str, float]:
    """Metrics of a saved model on `data.test`; several processes share the work and all get the same figures."""
    from accelerate.utils import gather_object

    data = _data_settings(settings)
    if data.test is None:
        raise UserError("--data.test: is required and was not given; allowed: a file, a folder or another source of data")
    predictor = _open(model, settings, batch_size, precision)
    if not predictor.task.aligned:
        check_no_aligned(data, predictor.task.columns(), problems := Problems())
        problems.raise_if_any()
    accelerator = make_accelerator(TrainingConfig(), "fp32")
    predictor.model.to(accelerator.device)
    part = (accelerator.process_index, accelerator.num_processes)
    path = Path(data.test) if isinstance(data.test, str) and not is_wheel(data.test) else None
    if path is not None and os.path.isfile(path):
        own = predictor.evaluate_file(path, data, part)
    else:
        own = _evaluate_rows(predictor, read_rows(data.test, "test", data, predictor.task.columns()), part)
    parts = gather_object([own]) if accelerator.num_processes > 1 else [own]
    order = np.argsort(np.concatenate([part[2] for part in parts]))
    joined = []
    for kind in (0, 1):
        filled = [part[kind] for part in parts if part[kind]]
        joined.append({name: np.concatenate([part[name] for part in filled])[order] for name in filled[0]})
    figures = predictor.task.metrics(joined[0], joined[1])
    return {"rows": len(order), **figures}


def _evaluate_rows(predictor: Predictor, rows: Rows, part: tuple[int, int]) -> Any:
    """A source that is read whole (a folder, a glob, a hub id): a share of its rows for each process."""
    problems = Problems("data")
    predictor.task.check(rows, problems)
    problems.raise_if_any()
    mine = np.arange(part[0], len(rows), part[1])
    answers, targets = predictor.answer_targets(rows.select(mine))
    return answers, targets, mine


def check_figures_file(output: Path | None) -> None:
    """Raises a UserError for what would only show after all the work."""
    if output is None:
        return
    if output.suffix.lower() != ".json":
        raise UserError(f"--output: found the ending {output.suffix!r} of {output}; allowed: .json")
    if output.is_dir() or not output.parent.is_dir():
        raise UserError(f"--output: {output} cannot be written; allowed: a .json file in a folder that exists")


def print_figures(figures: dict[str, float], output: Path | None) -> None:
    """A table for people on standard error, JSON for programs on standard output."""
    if os.environ.get("RANK", "0") != "0":
        return
    show_metrics({"test": figures})
    print(json.dumps(figures))
    if output is not None:
        try:
            write_json(output, figures)
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}") from error


def _data_settings(settings: dict[str, Any]) -> DataConfig:
    problems = Problems("settings")
    data = validate(DataConfig, settings.get("data", {}), problems, "data")
    problems.raise_if_any()
    assert data is not None
    return data


def _guess_rows(path: Path) -> int:
    """Rows of a file from its size and its first lines, for the progress bar alone."""
    try:
        start = read_start(path, 1 << 16)
    except OSError:  # reading says what is wrong
        return 1
    return max(1, int(path.stat().st_size / max(1, len(start)) * max(1, start.count(b"\n"))))


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A file beside `output` that takes its place when all went well, and is removed when not, with the folders made for it."""
    part = output.with_name(f".part-{output.name}")
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}; allowed: a file in a writable folder") from error
        yield part
        os.replace(part, output)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        for folder in made:
            with suppress(OSError):  # it was not made, or something else lies in it by now
                folder.rmdir()
        raise


class _UnixLines:
    """csv quotes only the characters of its own line end. It is told both, so that a lone one in a cell is quoted; lines
    themselves end in one character."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line[:-2] + "\n")


class Writer:
    """Columns to a file, batch after batch; the format is the ending's."""

    def __init__(self, path: Path, ending: str) -> None:
        self.ending = ending
        self.names: list[str] = []
        self.parquet: Any = None
        self.path = path
        self.file = None if ending == ".parquet" else path.open("w", encoding="utf-8", newline="")

    def write(self, columns: Columns) -> None:
        if self.ending == ".jsonl":
            self._write_jsonl(columns)
        elif self.ending == ".txt":
            answers = columns["translation"] if "translation" in columns else columns["prediction"]
            self._text().writelines(LINE_END.sub(" ", str(answer)) + "\n" for answer in answers)  # a line a row, whatever it says
        else:
            first = not self.names
            self.names = self.names or list(columns)
            if late := [name for name in columns if name not in self.names]:
                raise UserError(
                    f"--output: {self.ending} needs the same columns in all rows, and {late[0]!r} comes only after the first "
                    "rows of the input; allowed: .jsonl"
                )
            ordered = {name: columns[name] for name in self.names}  # a late JSON key may stand elsewhere
            if self.ending == ".parquet":
                self._write_parquet(ordered)
            else:
                self._write_csv(ordered, header=first)

    def _text(self) -> TextIO:
        assert self.file is not None
        return self.file

    def _write_jsonl(self, columns: Columns) -> None:
        for row in zip(*columns.values(), strict=True):
            # JSON has no NaN, which is how tables write a missing number.
            cells = (None if isinstance(cell, float) and cell != cell else cell for cell in row)
            self._text().write(json.dumps(dict(zip(columns, cells, strict=True)), ensure_ascii=False, default=str) + "\n")

    def _write_csv(self, columns: Columns, header: bool) -> None:
        writer = csv.writer(_UnixLines(self._text()), delimiter="\t" if self.ending == ".tsv" else ",", lineterminator="\r\n")
        if header:
            writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(json.dumps(cell, ensure_ascii=False) if isinstance(cell, (list, dict)) else cell for cell in row)

    def _write_parquet(self, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pa.table(columns, schema=None if self.parquet is None else self.parquet.schema)
            if self.parquet is None:  # a column without a value so far has no type yet; sparse ones mostly hold text
                text = [field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema]
                table = table.cast(pa.schema(text))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise UserError(
                f"--output: a .parquet column has one type, and later rows do not fit that of the first ({error}); "
                "allowed: .jsonl"
            ) from error
        if self.parquet is None:
            self.parquet = pq.ParquetWriter(self.path, table.schema)
        self.parquet.write_table(table)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.parquet is not None:
            self.parquet.close()
        if self.file is not None:
            self.file.close()

"""Check the arguments of `predict` and `translate` before a model is loaded: files, standard streams or texts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.file_reading import (
    SURROGATE,
    UNDECODED,
    format_of,
    has_lines,
    kind_of,
    names_no_format,
    undecoded,
)
from nlp_transfer.data.sources.table_reader import ENDINGS, Batch
from nlp_transfer.data.unused_settings import check_format_settings
from nlp_transfer.inference.standard_streams import DASH
from nlp_transfer.inference.worker_processes import check_processes
from nlp_transfer.inference.writers import ENDINGS as OUTPUTS
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Fault, Problems, UserError


@dataclass(frozen=True)
class FileOptions:
    """Options of a command that predicts the rows of a file.

    Attributes:
        source: the input, or `-` for standard input.
        output: the output, or `-` for standard output.
        form: format of standard input and output, such as `csv`. None means `txt` for standard input, and the format of the
            input for standard output.
        overwrite: whether the output may exist.
        notes: whether to add a column `note` with the reason why a row has no prediction.
        processes: number of processes, each with a copy of the model and an equal share of the cores.
    """

    source: Path
    output: Path
    form: str | None = None
    overwrite: bool = False
    notes: bool = False
    processes: int = 1


class Verbatim(str):
    """An argument after `--` on the command line, which is never an option."""


def mark_verbatim(arguments: Sequence[str]) -> list[str]:
    """Mark the arguments after `--`, so that they are recognized after parsing."""
    end = list(arguments).index("--") + 1 if "--" in arguments else len(arguments)
    return [*arguments[:end], *map(Verbatim, arguments[end:])]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the unparsed arguments of a command into texts and settings (such as `--data.delimiter ;`)."""
    texts: list[str] = []
    overrides: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if isinstance(word, Verbatim) or not word.startswith("--"):
            texts.append(word)
            continue
        overrides.append(word)
        if "=" not in word and remaining and not isinstance(remaining[0], Verbatim):
            overrides.append(remaining.pop(0))
    return texts, overrides


def rows_of_texts(texts: Sequence[str], names: Sequence[str]) -> Batch:
    """Convert texts from the command line to rows.

    Args:
        texts: the texts of the first row, then those of the next one, and so on.
        names: columns that the model reads.

    Raises:
        UserError: the number of texts is not a multiple of the number of columns.
    """
    if len(texts) % len(names):
        raise UserError(f"TEXT: found {len(texts)}; the model reads {len(names)} for each row: {', '.join(names)}")
    undecodable = {i: fault for i, text in enumerate(texts) if (fault := undecoded(text, "utf-8"))}
    faults = {i // len(names): Fault(UNDECODED, fault, names[i % len(names)]) for i, fault in undecodable.items()}
    readable = [SURROGATE.sub("\ufffd", text) for text in texts]
    columns = {name: readable[i :: len(names)] for i, name in enumerate(names)}
    return Batch(columns, 1, len(texts) // len(names), faults=faults)


def check_inputs(command: str, texts: Sequence[str], options: Mapping[str, Any]) -> None:
    """Check that a command has either texts, or an input and an output.

    Raises:
        UserError: the command has neither or both, an option has no effect on texts, or a text looks like a file name.
    """
    if texts:
        for text in texts:
            is_file = os.path.isfile(text) and ("." in text or os.sep in text)
            if is_file or (format_of(text) is not None and len(text.split()) == 1):
                looks = "is a file" if is_file else "looks like a file name"
                raise UserError(
                    f"TEXT: found {text!r}, which {looks}; to predict its rows: "
                    f"{command} --input {text} --output predictions.csv; to predict it as a text, pass it on standard "
                    "input, with --input - --output -"
                )
        destinations = {"input": "source", "output": "output", "format": "form", "overwrite": "overwrite", "notes": "notes"}
        unused = [flag for flag, name in destinations.items() if options[name]] + ["processes"] * (options["processes"] > 1)
        if unused:
            raise UserError(
                f"--{unused[0]}: has no effect on texts from the command line (found {texts[0]!r}); allowed: texts, or "
                "--input and --output"
            )
        return
    missing = [flag for flag, name in (("--input", "source"), ("--output", "output")) if options[name] is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not given; allowed: a file, or - for the standard stream, such as "
            f'{command} --input new.csv --output predictions.csv; or texts instead of files, such as {command} "a text"'
        )


def check_not_of_model(output: Path, model: str) -> None:
    """Raise a UserError if the output would replace a file of the model or of its run."""
    folder, target = expand(model).resolve(), output.resolve()
    if output != DASH and target.exists() and target.is_relative_to(folder):
        from nlp_transfer.saved_models.layout import RUN_FILES

        if (folder / "config.json").exists() or target.relative_to(folder).parts[0] in RUN_FILES:
            raise UserError(f"--output: {output} is a file of the model {model}; allowed: another file")


def check_files(options: FileOptions, probabilities: bool) -> str:
    """Check the files of a command; return the file extension of the output's format, such as `.csv`.

    Raises:
        UserError: a file or an option cannot be used. Without this check, the error would occur only after the model is loaded.
    """
    source, output, form = options.source, options.output, options.form
    if world_size() > 1:
        raise UserError(
            f"`predict` and `translate` run in one process (found WORLD_SIZE={world_size()}), which writes the rows in order; "
            "use --processes N to share the work"
        )
    problems = Problems()
    check_processes(options.processes, problems)
    if form and DASH not in (source, output):
        problems.add("--format: has no effect without --input - or --output -; the format of a file follows from its extension")
    ending = output.suffix.lower()
    if output == DASH:
        ending = f".{form or 'txt'}" if form or source == DASH else format_of(source) or ".txt"
        ending = ending if ending in OUTPUTS else ".jsonl"
    elif ending not in OUTPUTS and names_no_format(output) and (source == DASH or has_lines(source)):
        ending = ".txt"  # a file of lines, like the input
    for option, path in (("--input", source), ("--output", output)):
        try:
            path.exists()
            if path is output:
                path.resolve()
        except (OSError, RuntimeError) as error:  # such as a name that is too long, or circular links
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{option}: {path} is not a file: {reason}; allowed: a file ({', '.join(ENDINGS)})") from error
    if source != DASH:
        if format_of(source) is None and not names_no_format(source):
            problems.add(f"--input: found the file extension {source.suffix!r} of {source}; allowed: {', '.join(ENDINGS)}, or -")
        elif not source.exists():
            problems.add(f"--input: there is no file {source}; allowed: a file that exists ({', '.join(ENDINGS)})")
        elif kind := kind_of(source):
            problems.add(f"--input: {source} is {kind}; allowed: a file ({', '.join(ENDINGS)})")
    if output == DASH:
        if options.overwrite:
            problems.add("--overwrite: has no effect on standard output; leave it out")
    elif ending not in OUTPUTS:
        problems.add(f"--output: found the file extension {output.suffix!r} of {output}; allowed: {', '.join(OUTPUTS)}, or -")
    elif output.exists():
        if kind := kind_of(output):
            problems.add(f"--output: {output} is {kind}; allowed: a file ({', '.join(OUTPUTS)})")
        elif source != DASH and source.exists() and output.samefile(source):
            problems.add(f"--output: {output} is the input; allowed: another file")
        elif not options.overwrite:
            problems.add(f"--output: {output} already exists; allowed: another file, or --overwrite to replace it")
    for option, enabled in (("--probabilities", probabilities), ("--notes", options.notes)):
        if enabled and ending == ".txt":
            problems.add(f"{option}: a .txt file contains only the predictions; allowed: an --output with columns, such as .csv")
    problems.raise_if_any()
    return ending


def data_settings(settings: dict[str, Any], source: Path | None = None) -> DataConfig:
    """Return the settings for reading `source`, or `data.test` if `source` is None.

    Raises:
        UserError: a setting is invalid, or has no effect on files of this format.
    """
    problems = Problems("settings")
    data = validate(DataConfig, settings.get("data", {}), problems, "data")
    problems.raise_if_any()
    assert data is not None
    if source is None and data.test is None:
        raise UserError("--data.test: is required; allowed: a file, a folder or another source of data")
    check_format_settings(data, data.test if source is None else source, problems := Problems())
    problems.raise_if_any()
    return data

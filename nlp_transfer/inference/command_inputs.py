"""What `predict` and `translate` are given: files, standard streams or texts, checked before anything is loaded."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlp_transfer.data.sources.file_reading import (
    SURROGATE,
    UNDECODED,
    at_home,
    format_of,
    has_lines,
    kind_of,
    names_no_format,
    undecoded,
)
from nlp_transfer.data.sources.table_reader import ENDINGS, Batch, check_lines
from nlp_transfer.inference.standard_streams import DASH
from nlp_transfer.inference.worker_processes import check_processes
from nlp_transfer.inference.writers import ENDINGS as OUTPUTS
from nlp_transfer.utils.distributed import world_size
from nlp_transfer.utils.errors import Fault, Problems, UserError


class Verbatim(str):
    """A word of the command line that stands after `--`, so that it is no option."""


def mark_verbatim(arguments: Sequence[str]) -> list[str]:
    """Mark the words after `--`, which the parser leaves in place."""
    end = list(arguments).index("--") + 1 if "--" in arguments else len(arguments)
    return [*arguments[:end], *map(Verbatim, arguments[end:])]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that belong to no option, as texts and settings (`--data.delimiter ;`)."""
    texts: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if isinstance(word, Verbatim) or not word.startswith("--"):
            texts.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not isinstance(rest[0], Verbatim):
            overrides.append(rest.pop(0))
    return texts, overrides


def batch_of(texts: Sequence[str], names: Sequence[str]) -> Batch:
    """Return the rows of texts of the command line, those of one row after the other.

    Args:
        names: columns that the model reads.

    Raises:
        UserError: texts are missing in the last row.
    """
    if len(texts) % len(names):
        raise UserError(f"TEXT: found {len(texts)}; the model reads {len(names)} for each row: {', '.join(names)}")
    undecodable = {i: fault for i, text in enumerate(texts) if (fault := undecoded(text, "utf-8"))}
    faults = {i // len(names): Fault(UNDECODED, fault, names[i % len(names)]) for i, fault in undecodable.items()}
    readable = [SURROGATE.sub("\ufffd", text) for text in texts]
    columns = {name: readable[i :: len(names)] for i, name in enumerate(names)}
    return Batch(columns, 1, len(texts) // len(names), faults=faults)


def check_inputs(command: str, texts: Sequence[str], options: Mapping[str, Any]) -> None:
    """Check that there are either texts, or an input and an output.

    Raises:
        UserError: there is neither or both, an option has no effect on texts, or a text is the name of a file.
    """
    if texts:
        for text in texts:
            is_file = os.path.isfile(text) and ("." in text or os.sep in text)
            if is_file or (format_of(text) is not None and len(text.split()) == 1):
                raise UserError(
                    f"found {text!r} in place of a text, which is {'a' if is_file else 'like the name of a'} file; for its rows: "
                    f"{command} --input {text} --output predictions.csv; to use these words as a text, give them on standard "
                    "input, with --input - --output -"
                )
        named = {"input": "source", "output": "output", "format": "form", "overwrite": "overwrite", "notes": "notes"}
        unused = [flag for flag, name in named.items() if options[name]] + ["processes"] * (options["processes"] > 1)
        if unused:
            raise UserError(
                f"--{unused[0]}: has no effect on texts of the command line (found {texts[0]!r}); allowed: either texts, or "
                "--input and --output"
            )
        return
    missing = [flag for flag, name in (("--input", "source"), ("--output", "output")) if options[name] is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not given; allowed: a file, or - for the standard stream, as in "
            f'{command} --input new.csv --output predictions.csv; or texts in place of files, as in {command} "a text"'
        )


def check_not_of_model(output: Path, model: str) -> None:
    """Raise a UserError where the output would replace a file that belongs to the model, or to the run that made it."""
    folder, place = at_home(model).resolve(), output.resolve()
    if output != DASH and place.exists() and place.is_relative_to(folder):
        from nlp_transfer.saved_models.layout import RUN_FILES

        if (folder / "config.json").exists() or place.relative_to(folder).parts[0] in RUN_FILES:
            raise UserError(f"--output: {output} is a file of the model {model}; allowed: another file")


def check_files(
    source: Path, output: Path, processes: int, form: str | None, overwrite: bool, notes: bool, probabilities: bool
) -> str:
    """The ending of the output's format.

    Raises:
        UserError: what would only show after the model was loaded, or after all the work.
    """
    if world_size() > 1:
        raise UserError(
            "found several processes of a launcher; allowed: one, since rows are written in their order to one file. "
            "--processes N shares the work among several"
        )
    problems = Problems()
    check_processes(processes, problems)
    if form and DASH not in (source, output):
        problems.add("--format: has no effect without --input - or --output -; files have the format of their ending")
    ending = output.suffix.lower()
    if output == DASH:
        like = f".{form or 'txt'}" if form or source == DASH else format_of(source) or ".txt"
        ending = like if like in OUTPUTS else ".jsonl"
    elif ending not in OUTPUTS and names_no_format(output) and (source == DASH or has_lines(source)):
        ending = ".txt"  # lines to lines
    for option, path in (("--input", source), ("--output", output)):
        try:
            path.exists()
            if path is output:
                path.resolve()
        except (OSError, RuntimeError) as error:  # a name that is too long, say, or links in a circle
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{option}: {path} is no file: {reason}; allowed: a file ({', '.join(ENDINGS)})") from error
    if source != DASH:
        if format_of(source) is None and not names_no_format(source):
            problems.add(f"--input: found the ending {source.suffix!r} of {source}; allowed: {', '.join(ENDINGS)}, or -")
        elif not source.exists():
            problems.add(f"--input: there is no file {source}; allowed: a file that exists ({', '.join(ENDINGS)})")
        elif kind := kind_of(source):
            problems.add(f"--input: {source} is {kind}; allowed: a file ({', '.join(ENDINGS)})")
        elif format_of(source) is None:
            check_lines(source, "text")
    if output == DASH:
        if overwrite:
            problems.add("--overwrite: has no effect on standard output; leave it out")
    elif ending not in OUTPUTS:
        problems.add(f"--output: found the ending {output.suffix!r} of {output}; allowed: {', '.join(OUTPUTS)}, or -")
    elif output.exists():
        if kind := kind_of(output):
            problems.add(f"--output: {output} is {kind}; allowed: a file ({', '.join(OUTPUTS)})")
        elif source != DASH and source.exists() and output.samefile(source):
            problems.add(f"--output: {output} is the input; allowed: another file")
        elif not overwrite:
            problems.add(f"--output: {output} exists already; allowed: another file, or --overwrite to replace it")
    for option, given in (("--probabilities", probabilities), ("--notes", notes)):
        if given and ending == ".txt":
            problems.add(f"{option}: a .txt file holds the predictions alone; allowed: an --output with columns, such as .csv")
    problems.raise_if_any()
    return ending

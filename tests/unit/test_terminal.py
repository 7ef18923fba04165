"""What strangers wrote is shown on a terminal, and not obeyed by it."""

import io
import logging
import warnings

import click
import pytest
from rich.console import Console

from nlp_transfer.commands.exit_status import run_command
from nlp_transfer.inference.standard_streams import OutputStream
from nlp_transfer.inference.writers import Writer
from nlp_transfer.security.redaction import guard_messages
from nlp_transfer.security.terminal_text import PrintableStream, printable
from nlp_transfer.utils import console
from nlp_transfer.utils.errors import UserError

HOSTILE = "a\x1b[2J\x9b31m\x07\r\x7f\u202eb\u2066\udc80\x00"
SPELLED = r"a\x1b[2J\x9b31m\x07\r\x7f\u202eb\u2066\udc80\x00"


def test_what_a_terminal_obeys_is_spelled_out_and_nothing_else() -> None:
    assert printable(HOSTILE) == SPELLED
    for text in ("tab\tand line\n", "é ß 漢字 🎉 👩‍👩‍👧", "می\u200cخواهم", "שלום\u200f!", "\\x1b [bold]"):
        assert printable(text) == text


def test_lines_tables_and_progress_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(f"label {HOSTILE}")
    console.show_table(HOSTILE, ["", HOSTILE], [[HOSTILE, HOSTILE]])
    steps = console.Steps(HOSTILE, 2)
    steps.note(HOSTILE)
    steps.pause = 0
    steps.advance()
    printed = capsys.readouterr().err
    assert f"label {SPELLED}" in printed
    assert f"{SPELLED}: 1/2" in printed
    assert printable(printed) == printed


@pytest.mark.parametrize("width", [80, 200])
def test_long_texts_in_tables_are_not_squeezed(width: int) -> None:
    """In a narrow terminal, a row is a list of its cells; labels are only broken if they are longer than a line."""
    text, label = "How do I get a new card? " * 4, "balance_not_updated_after_cheque_or_cash_deposit"
    output = io.StringIO()
    table = console.text_table("title", ["text", "given", "suggested"], [[text, label, f"{label}2"], ["a", "b", 0.5]], width)
    Console(file=output, width=width).print(table)
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert sum(label in line for line in lines) == (2 if width == 80 else 1)
    assert sum(len(line.split()) > 6 for line in lines) >= 2, "several words of the text in a line"
    assert all(name in output.getvalue() for name in ("text", "given", "suggested", "0.5000"))


@pytest.mark.parametrize("error", [UserError(HOSTILE), click.UsageError(HOSTILE), RuntimeError(HOSTILE)])
def test_errors_are_printable(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit):
        run_command(fail)
    printed = capsys.readouterr().err
    assert SPELLED.partition("J")[2] in printed  # click itself removes what comes before
    assert printable(printed) == printed


def test_log_records_and_warnings_of_libraries_are_printable(caplog: pytest.LogCaptureFixture) -> None:
    factory, formatted = logging.getLogRecordFactory(), warnings.formatwarning
    try:
        guard_messages()
        guard_messages()  # twice changes nothing
        logging.getLogger("transformers").warning("model type %s", HOSTILE)
        shown = warnings.formatwarning(UserWarning(HOSTILE), UserWarning, "a.py", 1, "")
    finally:
        logging.setLogRecordFactory(factory)
        warnings.formatwarning = formatted
    assert caplog.messages == [f"model type {SPELLED}"]
    assert SPELLED in shown
    assert printable(shown) == shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_predictions_are_printable_on_terminals_exact_in_files(ending: str) -> None:
    found = []
    for stream in (Terminal(), io.StringIO()):
        with Writer(OutputStream(stream, ending).open(), ending) as writer:  # type: ignore[arg-type]
            writer.write({"prediction": ["a\x9bb\u202ec"]})
        found.append(stream.getvalue())
    assert r"a\x9bb\u202ec" in found[0]
    assert "a\x9bb\u202ec" in found[1]


def test_a_printable_stream_leaves_the_one_below_open() -> None:
    below = io.StringIO()
    stream = PrintableStream(below)
    stream.writelines(["a\x1b\n", "b\n"])
    stream.close()
    del stream
    assert below.getvalue() == "a\\x1b\nb\n"

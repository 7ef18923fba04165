"""Print messages, tables and progress to standard error, from the main process only.

Standard output is reserved for results, so that it can be piped. Secrets are redacted and control characters escaped.
"""

import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from enum import IntEnum
from functools import cache
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.distributed import rank


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError for the caller to handle; rich would exit with status 1."""
        raise BrokenPipeError


console = _Console(stderr=True, highlight=False, soft_wrap=True)


LONG = 28  # characters; longer texts in tables are wrapped
PACKAGE = __name__.split(".")[0]


class Level(IntEnum):
    """How much is printed."""

    SILENT = 0
    """Nothing."""
    QUIET = 1
    """Warnings and the final result."""
    NORMAL = 2
    """Also what was resolved, progress and tables."""
    VERBOSE = 3
    """Also details, such as a line for each logged step."""


_level: ContextVar[Level] = ContextVar("level", default=Level.NORMAL)
_as_warnings: ContextVar[bool] = ContextVar("as_warnings", default=False)


@contextmanager
def output_level(level: Level) -> Iterator[None]:
    """Context in which this thread prints only what belongs to `level`. Within another one, the lower level applies."""
    token = _level.set(level if _level.get() is Level.NORMAL else min(level, _level.get()))
    try:
        with ExitStack() as libraries:
            if level < Level.NORMAL:
                _hide_library_bars(libraries)
            yield
    finally:
        _level.reset(token)


def quiet_output(with_warnings: bool = False) -> Any:
    """Return a context that prints nothing: no messages, tables and progress, also not of transformers and the hub.

    Example:
        `with quiet_output(): fine_tune(...)`

    Args:
        with_warnings: whether to print warnings and the final result of a run.
    """
    return output_level(Level.QUIET if with_warnings else Level.SILENT)


def prints(level: Level) -> bool:
    """Whether this process prints what belongs to `level`."""
    return is_main() and _level.get() >= level


def _hide_library_bars(exits: ExitStack) -> None:
    """Hide the progress bars of libraries that are loaded, the advice of transformers and the retries of the hub."""
    for name in ("transformers.utils.logging", "huggingface_hub.utils.logging"):
        if logging := sys.modules.get(name):
            exits.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
    if (logging := sys.modules.get("transformers.utils.logging")) and logging.is_progress_bar_enabled():
        exits.callback(logging.enable_progress_bar)
        logging.disable_progress_bar()
    for name in ("huggingface_hub.utils", "datasets.utils"):
        library = sys.modules.get(name)
        if library is not None and not library.are_progress_bars_disabled():
            exits.callback(library.enable_progress_bars)
            library.disable_progress_bars()


def is_main() -> bool:
    """Whether this is the main process, with rank 0."""
    return rank() == 0


def shown(text: str) -> str:
    """Redact secrets and escape control characters."""
    return printable(redact(text))


def say(*lines: str, level: Level = Level.NORMAL) -> None:
    """Print lines; lines that start with `warning:` are highlighted.

    Args:
        level: the lowest output level that prints the lines. It is QUIET for warnings.
    """
    for line in lines:
        is_warning = line.startswith("warning:")
        if is_warning and _as_warnings.get() and is_main():
            warnings.warn(shown(line).removeprefix("warning: "), stacklevel=_depth_of_caller())
        if prints(min(level, Level.QUIET) if is_warning else level):
            console.print(shown(line), style="yellow" if is_warning else None, markup=False)


def _depth_of_caller() -> int:
    """Return the `stacklevel` of the innermost frame outside this package, seen from the function that calls this one."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] == PACKAGE:
        depth, frame = depth + 1, frame.f_back
    return depth


@contextmanager
def messages_as_warnings() -> Iterator[None]:
    """Context that prints nothing. Lines that start with `warning:` become Python warnings."""
    token = _as_warnings.set(True)
    try:
        with output_level(Level.SILENT):
            yield
    finally:
        _as_warnings.reset(token)


@cache
def say_once(line: str) -> None:
    """Print a line, unless this process has already printed it."""
    say(line)


def number(value: float, decimals: int = 4) -> str:
    """Format a metric.

    Values below 10 have `decimals` decimal places, values below 10 ** `decimals` have two fewer, and larger values have none. A
    value that would round to zero has two significant digits.
    """
    size = abs(value)
    if 0 < size < 10**-decimals:
        return f"{value:.2g}"
    shown_decimals = decimals if size < 10 else decimals - 2 if size < 10**decimals else 0
    return f"{value:.{shown_decimals}f}"


def percent(count: float, total: float = 1.0) -> str:
    """Format a share as `45.3%`, with one significant digit below 0.1%, or as `>99.9%` if it would round to 100%."""
    share = count / total
    if 0 < share < 0.001:
        return f"{share:.{-math.floor(math.log10(100 * share))}%}"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats are formatted with `number`. One with long texts that is too wide is printed as records."""
    if prints(Level.NORMAL):
        console.print(text_table(title, columns, rows, console.width))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table that is the result of a command to standard output. Without a terminal, cells are not folded."""
    output = _Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 1000)
    output.print(text_table("", columns, rows))


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> Table:
    """Return a table whose text is not markup.

    Args:
        width: number of characters of a line. If the table has texts of more than `LONG` characters, and does not fit without
            breaking words or squeezing these texts, it has a line for each cell instead. None: a line for each row.
    """
    heads = [Text(shown(name)) for name in columns]  # as Text, since brackets in plain strings are markup
    cells = [[Text(number(cell) if isinstance(cell, float) else shown(str(cell))) for cell in row] for row in rows]
    longest = [max((cell.cell_len for cell in column), default=0) for column in zip(*cells, strict=True)] or [0] * len(heads)
    words = [max(map(cell_len, f"{head.plain} {' '.join(row[i].plain for row in cells)}".split()), default=0)
             for i, head in enumerate(heads)]  # fmt: skip
    needed = sum(max(word, min(cell, LONG)) + 3 for word, cell in zip(words, longest, strict=True)) + 1
    is_split = width is not None and max(longest, default=0) > LONG and needed > width
    table = Table(title=Text(shown(title)) if title else None, title_justify="left", show_header=not is_split)
    if is_split:
        table.add_column(max_width=LONG)
        table.add_column(overflow="fold")
        for row in cells:
            for head, cell in zip(heads, row, strict=True):
                table.add_row(head, cell)
            table.add_section()
        return table
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 or longest[i] > LONG else "right", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def show_metrics(metrics: Mapping[str, Mapping[str, float]], title: str = "metrics") -> None:
    """Print a table with a row per metric and a column per split, with confidence intervals if available."""
    splits = list(metrics)
    if not splits:
        return
    names = list(dict.fromkeys(name for split in splits for name in metrics[split]))
    rows = [name for name in names if not name.endswith(("_low", "_high")) or name.rpartition("_")[0] not in names]
    show_table(title, ["", *splits], [[name, *(_with_interval(metrics[split], name) for split in splits)] for name in rows])


def _with_interval(metrics: Mapping[str, float], name: str) -> object:
    if f"{name}_low" not in metrics:
        return metrics.get(name, "")
    return f"{metrics[name]:.2f} ({metrics[f'{name}_low']:.2f} to {metrics[f'{name}_high']:.2f})"


class Steps:
    """Progress over a known number of steps, with a note and the remaining time: a bar on a terminal, or else occasional lines.

    Args:
        title: description of the task.
        total: number of steps.
        done: number of steps that are already done.
    """

    EVERY, LONGEST = 30.0, 600.0  # seconds between lines if there is no terminal: at first, and at most

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = shown(title), total, done
        self.started, self.done_before = time.monotonic(), done
        self.last_printed, self.pause = self.started, self.EVERY
        self.text = ""
        self.bar = None
        if prints(Level.NORMAL) and console.is_terminal:
            spinner = "dots" if console.encoding.lower().startswith("utf") else "line"
            self.bar = Progress(
                SpinnerColumn(spinner), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False), console=console, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=total, completed=done, note="")

    def note(self, text: str) -> None:
        """Set the text that is shown after the progress."""
        self.text = shown(text)

    def skip(self, steps: int) -> None:
        """Count steps that were not run now, such as those of an earlier run; they do not affect the estimated time."""
        if self.done == self.done_before:
            self.started = time.monotonic()
        self.done_before += steps
        self.advance(steps)
        if self.bar is not None:
            self.bar.reset(self.task, total=self.total, completed=self.done)

    def advance(self, steps: int = 1) -> None:
        """Count finished steps and update the progress."""
        self.done += steps
        self.total = max(self.total, self.done)  # the total may be an estimate
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, total=self.total, note=self.text)
        elif now - self.last_printed >= self.pause and self.done > self.done_before:
            self.last_printed, self.pause = now, min(self.pause * 1.5, self.LONGEST)
            rate = (self.done - self.done_before) / (now - self.started)
            left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            say(f"{self.title}: {self.done}/{self.total}{left}{', ' if self.text else ''}{self.text}")

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """Format a duration, such as `2.5 hours`."""
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"

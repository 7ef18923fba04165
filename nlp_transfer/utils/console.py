"""Print messages, tables and progress to standard error, from the main process only.

Standard output is reserved for results, so that it can be piped. Secrets are redacted and control characters escaped.
"""

import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.distributed import rank


class _Console(Console):
    as_warnings = False
    users = 0  # contexts `messages_as_warnings` that are open, perhaps in several threads

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError for the caller to handle; rich would exit with status 1."""
        raise BrokenPipeError


console = _Console(stderr=True, highlight=False, soft_wrap=True)
_LOCK = threading.Lock()


def is_main() -> bool:
    """Whether this is the main process, with rank 0."""
    return rank() == 0


def shown(text: str) -> str:
    """Redact secrets and escape control characters."""
    return printable(redact(text))


def say(*lines: str) -> None:
    """Print lines; lines that start with `warning:` are highlighted."""
    if is_main():
        for line in lines:
            if console.as_warnings and line.startswith("warning:"):
                warnings.warn(shown(line).removeprefix("warning: "), stacklevel=2)
            console.print(shown(line), style="yellow" if line.startswith("warning:") else None, markup=False)


@contextmanager
def messages_as_warnings() -> Iterator[None]:
    """Print nothing, in any thread. Lines that start with `warning:` become Python warnings."""
    with _LOCK:
        console.users += 1
        console.quiet = console.as_warnings = True
    try:
        yield
    finally:
        with _LOCK:
            console.users -= 1
            console.quiet = console.as_warnings = console.users > 0


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
    """Print a table; floats are formatted with `number`."""
    if not is_main():
        return
    table = Table(title=Text(shown(title)), title_justify="left")
    for i, name in enumerate(columns):  # as Text, since brackets in plain strings are markup
        table.add_column(Text(shown(name)), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(number(cell) if isinstance(cell, float) else Text(shown(str(cell))) for cell in row))
    console.print(table)


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
        if is_main() and console.is_terminal:
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
            left = f", {_duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            say(f"{self.title}: {self.done}/{self.total}{left}{', ' if self.text else ''}{self.text}")

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.stop()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"

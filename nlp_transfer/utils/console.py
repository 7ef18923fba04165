"""What a user sees while something runs: lines, tables and progress, from the main process alone.

Everything goes to standard error, so that standard output holds results and can be piped. Secrets are hidden in all of it, and
control characters are spelled out.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from nlp_transfer.security.secret_patterns import redact
from nlp_transfer.security.terminal_text import printable
from nlp_transfer.utils.distributed import rank


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Pass on that nobody reads any more; rich itself would end the process with status 1."""
        raise BrokenPipeError


console = _Console(stderr=True, highlight=False, soft_wrap=True)


def is_main() -> bool:
    return rank() == 0


def shown(text: str) -> str:
    """The text as messages show it: without secrets and without what a terminal would obey."""
    return printable(redact(text))


def say(*lines: str) -> None:
    """Prints lines; one that starts with `warning:` stands out."""
    if is_main():
        for line in lines:
            console.print(shown(line), style="yellow" if line.startswith("warning:") else None, markup=False)


@cache
def say_once(line: str) -> None:
    """Print a line that this process has not printed yet."""
    say(line)


def number(value: float, decimals: int = 4) -> str:
    """A metric with its meaningful digits: `decimals` after the point, two fewer from 10 on, none where the digits before the
    point are enough; two significant ones where it would round to zero."""
    size = abs(value)
    if 0 < size < 10**-decimals:
        return f"{value:.2g}"
    after = decimals if size < 10 else decimals - 2 if size < 10**decimals else 0
    return f"{value:.{after}f}"


def percent(part: float, whole: float = 1.0) -> str:
    """A share as `45.3%`; with one significant digit where one decimal is too few for it, and `>99.9%` where it is nearly all."""
    share = part / whole
    if 0 < share < 0.001:
        return f"{share:.{-math.floor(math.log10(100 * share))}%}"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if not is_main():
        return
    table = Table(title=Text(shown(title)), title_justify="left")
    for i, name in enumerate(columns):  # as texts, since words in square brackets would be markup
        table.add_column(Text(shown(name)), justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(number(cell) if isinstance(cell, float) else Text(shown(str(cell))) for cell in row))
    console.print(table)


def show_metrics(metrics: Mapping[str, Mapping[str, float]], title: str = "metrics") -> None:
    """One row a metric, one column a split; the ends of a metric's interval stand beside it."""
    splits = list(metrics)
    if not splits:
        return
    names = list(dict.fromkeys(name for split in splits for name in metrics[split]))
    own = [name for name in names if not name.endswith(("_low", "_high")) or name.rpartition("_")[0] not in names]
    show_table(title, ["", *splits], [[name, *(_with_interval(metrics[split], name) for split in splits)] for name in own])


def _with_interval(figures: Mapping[str, float], name: str) -> object:
    if f"{name}_low" not in figures:
        return figures.get(name, "")
    return f"{figures[name]:.2f} ({figures[f'{name}_low']:.2f} to {figures[f'{name}_high']:.2f})"


class Steps:
    """Progress over a known number of steps, with loss, rate and time left; a line now and then where there is no
    terminal."""

    EVERY, LONGEST = 30.0, 600.0  # seconds between the first two lines without a terminal, and between any two

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done = shown(title), total, done
        self.started, self.done_before = time.monotonic(), done
        self.spoken, self.pause = self.started, self.EVERY
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
        """What is shown beside the progress from now on."""
        self.text = shown(text)

    def skip(self, steps: int) -> None:
        """Count steps that took no time here, such as those of an earlier run: they say nothing about the rate, nor does the
        time before them."""
        if self.done == self.done_before:
            self.started = time.monotonic()
        self.done_before += steps
        self.advance(steps)
        if self.bar is not None:
            self.bar.reset(self.task, total=self.total, completed=self.done)

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        self.total = max(self.total, self.done)  # where the total was an estimate
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, total=self.total, note=self.text)
        elif now - self.spoken >= self.pause and self.done > self.done_before:
            self.spoken, self.pause = now, min(self.pause * 1.5, self.LONGEST)
            rate = (self.done - self.done_before) / (now - self.started)
            left = f", {_duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
            say(f"{self.title}: {self.done}/{self.total}{left}{', ' if self.text else ''}{self.text}")

    def close(self) -> None:
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

"""One sentence that follows from the figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from nlp_transfer.utils.console import number

LEVEL, ALIKE = 0.05, 0.5


@dataclass(frozen=True)
class Candidate:
    """A strategy as the advice sees it. `p` is that of the paired test against the best one, over rows and seeds; None: there was
    no test, for want of two common seeds."""

    label: str
    value: float
    seconds: float
    stored_bytes: int
    p: float | None = None
    seeds: int = 1


def advise(candidates: Sequence[Candidate], metric: str, higher: bool, split: str, asked: int | None = None) -> str:
    """Say which strategy to take and why.

    The best by its mean, unless there are three seeds or more and others do not differ measurably from it (`p` of 0.5 or more: a
    difference of at most one standard error, as in the rule of Breiman et al. 1984); then, among them, the quickest to train, and
    of equally quick ones the smallest.
    Where its lead is not certain (`p` of 0.05 or more, or no test), the advice says so.

    Args:
        candidates: the first is the one that all are compared with.
        asked: how many strategies there were, those without a metric among them.
    """
    if not candidates:
        return "No strategy gave figures, so there is none to recommend."
    sign = 1 if higher else -1
    best = max(candidates, key=lambda one: (sign * one.value, -one.seconds, -one.stored_bytes))
    figures = f"{metric} {show(best.value)} on {split}"
    if len(candidates) == 1:
        others = f"; the others gave no figures (there were {asked})" if asked and asked > 1 else ""
        return f"Only {best.label} was measured ({figures}){others}, so there is nothing to compare it with{_seeds(best, split)}."
    others_of = [one for one in candidates if one is not best]
    # With two seeds p is above ALIKE for nearly any gap.
    alike = [one for one in others_of if one.p is not None and one.p >= ALIKE and best.seeds > 2]
    unsure = [one for one in others_of if one not in alike and (one.p is None or one.p >= LEVEL)]
    cheapest = min([best, *alike], key=lambda one: (one.seconds, one.stored_bytes, -sign * one.value))
    first = candidates[0]
    if cheapest is not best:
        said = (
            f"Take {cheapest.label}: at {metric} {show(cheapest.value)} on {split} it cannot be told from the best, {best.label} "
            f"({show(best.value)}, {_p(cheapest)}), and is the cheapest such ({cost(cheapest)} against {cost(best)})"
        )
    elif alike:
        said = (
            f"Take {best.label}: it is the best by mean ({figures}) and the cheapest ({cost(best)}) of those that cannot be told "
            f"apart: {_names(alike)}"
        )
    elif unsure:
        said = f"Take {best.label}: it is the best by mean ({figures})"
    else:
        said = f"Take {best.label}: it is the best ({figures}), and every other is measurably worse (p below {LEVEL})"
    if unsure:
        count = "one seed" if best.seeds == 1 else f"{best.seeds} seeds"
        said += f"; with {count} the lead of {best.label} over {_names(unsure)} is not certain, more seeds would tell"
    if best is first:
        said += f"; no other is better than the first, {first.label}"
    elif first in alike or first in unsure:
        said += f"; no other is measurably better than the first, {first.label}"
    return said + _seeds(best, split) + "."


def _seeds(one: Candidate, split: str) -> str:
    return f"; with one seed there is no test, and the intervals cover the rows of {split} alone" if one.seeds == 1 else ""


def _names(some: Sequence[Candidate]) -> str:
    return ", ".join(f"{one.label} ({show(one.value)}, {_p(one)})" for one in some[:3]) + (
        f" and {len(some) - 3} more" if len(some) > 3 else ""
    )


def _p(one: Candidate) -> str:
    if one.p is None:
        return "one seed" if one.seeds == 1 else "fewer than two common seeds"
    return f"p {show_p(one.p)}"


def cost(one: Candidate) -> str:
    return f"{show_seconds(one.seconds)}, {show_bytes(one.stored_bytes)}"


def show(value: float) -> str:
    """A metric as a reader wants it."""
    return number(value, 3)


def show_p(p: float) -> str:
    """A p-value: the same digits in the table and in the advice."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def show_seconds(seconds: float) -> str:
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit or seconds == unit:
            return f"{seconds / unit:.1f}".removesuffix(".0") + f" {word}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def show_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"

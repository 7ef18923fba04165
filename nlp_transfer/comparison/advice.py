"""One sentence that follows from the figures."""

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True)
class Candidate:
    """A strategy as the advice sees it. `p` and `p_rows` are of the paired tests against the best one, over rows and seeds and
    over rows with these runs held fixed; None: there was none, for want of common seeds."""

    label: str
    value: float
    seconds: float
    stored_bytes: int
    p: float | None = None
    p_rows: float | None = None
    seeds: int = 1


def advise(candidates: Sequence[Candidate], metric: str, higher: bool, split: str, asked: int | None = None) -> str:
    """The strategy to take and why.

    The best by its mean, unless others cannot be told from it on these rows (`p_rows` of 0.05 or more, or no test): then the
    cheapest of them, the quickest to train, and of equally quick ones the smallest to store. One that is worse on these rows is
    not taken, but where seeds are too few or too unlike to be sure of that (`p` of 0.05 or more) it is said. The first candidate
    is the one that all are compared with. `asked`: how many strategies there were, those that gave no figures among them.
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
    alike = [one for one in others_of if one.p_rows is None or one.p_rows >= LEVEL]
    unsure = [one for one in others_of if one not in alike and one.p is not None and one.p >= LEVEL]
    cheapest = min([best, *alike], key=lambda one: (one.seconds, one.stored_bytes, -sign * one.value))
    first = candidates[0]
    if cheapest is not best:
        said = (
            f"Take {cheapest.label}: at {metric} {show(cheapest.value)} on {split} it cannot be told from the best, {best.label} "
            f"({show(best.value)}, {_p(cheapest.p_rows)}), and is the cheapest such ({cost(cheapest)} against {cost(best)})"
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
        names = ", ".join(f"{one.label} ({show(one.value)}, {_p(one.p)})" for one in unsure[:3])
        more = f" and {len(unsure) - 3} more" if len(unsure) > 3 else ""
        said += f"; with {best.seeds} seeds the lead of {best.label} over {names}{more} is not certain, more seeds would tell"
    if best is first:
        said += f"; no other is better than the first, {first.label}"
    elif first in alike or first in unsure:
        said += f"; no other is measurably better than the first, {first.label}"
    return said + _seeds(best, split) + "."


def _seeds(one: Candidate, split: str) -> str:
    return f"; with one seed the intervals cover the rows of {split} alone" if one.seeds == 1 else ""


def _names(alike: Sequence[Candidate]) -> str:
    return ", ".join(f"{one.label} ({show(one.value)}, {_p(one.p_rows)})" for one in alike[:3]) + (
        f" and {len(alike) - 3} more" if len(alike) > 3 else ""
    )


def _p(p: float | None) -> str:
    return "no common seeds" if p is None else f"p {p:.2g}"


def cost(one: Candidate) -> str:
    return f"{show_seconds(one.seconds)}, {show_bytes(one.stored_bytes)}"


def show(value: float) -> str:
    """A figure as a reader wants it."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


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

"""Recommend one of the compared strategies, with the reasons, in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from nlp_transfer.utils.console import number

SIGNIFICANT, INDISTINGUISHABLE = 0.05, 0.5  # a p-value below the first; a p-value equal to or above the second


@dataclass(frozen=True)
class Candidate:
    """A strategy that may be recommended: its mean metric, its costs, and the result of its test against the best strategy."""

    label: str
    value: float
    seconds: float
    stored_bytes: int
    p: float | None = None
    """P-value of the paired test against the best strategy. None for the best strategy, or with fewer than two common seeds."""
    seeds: int = 1
    """Number of seeds."""


def advise(candidates: Sequence[Candidate], metric: str, higher: bool, split: str, compared: int | None = None) -> str:
    """Recommend the strategy with the best mean metric, or a cheaper one that is equally good.

    With three or more seeds, strategies whose `p` is at least 0.5 count as equally good as the best one: they differ from it by
    about one standard error or less, as in the one-standard-error rule (Breiman et al. 1984). Of these, the fastest to train is
    recommended, or the smallest if several are equally fast. The text says whether the lead is uncertain (`p` is at least 0.05,
    or there is no test).

    Args:
        candidates: the first one is the baseline.
        metric: name of the metric.
        higher: whether higher values are better.
        split: name of the split that the metric was computed on.
        compared: number of compared strategies, including those without metrics.

    Returns:
        The sentence.
    """
    if not candidates:
        return "No strategy has metrics, so there is none to recommend."
    sign = 1 if higher else -1
    best = max(candidates, key=lambda candidate: (sign * candidate.value, -candidate.seconds, -candidate.stored_bytes))
    score = f"{metric} {show(best.value)} on {split}"
    if len(candidates) == 1:
        failed = f"; the others have no metrics (of {compared} strategies)" if compared and compared > 1 else ""
        return (
            f"Only {best.label} was measured ({score}){failed}, so there is nothing to compare it with{_one_seed(best, split)}."
        )
    others = [candidate for candidate in candidates if candidate is not best]
    # With two seeds nearly every difference has a p-value above INDISTINGUISHABLE.
    equal = [other for other in others if other.p is not None and other.p >= INDISTINGUISHABLE and best.seeds > 2]
    uncertain = [other for other in others if other not in equal and (other.p is None or other.p >= SIGNIFICANT)]
    cheapest = min([best, *equal], key=lambda candidate: (candidate.seconds, candidate.stored_bytes, -sign * candidate.value))
    if cheapest is not best:
        text = (
            f"Take {cheapest.label}: with {metric} {show(cheapest.value)} on {split} it is not measurably worse than the best, "
            f"{best.label} ({show(best.value)}, {_p(cheapest)}), and it is the cheapest of these strategies ({_cost(cheapest)}; "
            f"{best.label}: {_cost(best)})"
        )
    elif equal:
        text = (
            f"Take {best.label}: it has the best mean ({score}) and is the cheapest ({_cost(best)}) of those that are not "
            f"measurably worse: {_names(equal)}"
        )
    elif uncertain:
        text = f"Take {best.label}: it has the best mean ({score})"
    else:
        text = f"Take {best.label}: it is the best ({score}), and every other is measurably worse (p below {SIGNIFICANT})"
    if uncertain:
        seeds = "one seed" if best.seeds == 1 else f"{best.seeds} seeds"
        text += f"; with {seeds} the lead of {best.label} over {_names(uncertain)} is uncertain, so run more seeds"
    first = candidates[0]
    if best is first:
        text += f"; no other is better than the first, {first.label}"
    elif first in equal or first in uncertain:
        text += f"; no other is measurably better than the first, {first.label}"
    return text + _one_seed(best, split) + "."


def _one_seed(candidate: Candidate, split: str) -> str:
    return f"; with one seed there is no test, and the intervals cover only the rows of {split}" if candidate.seeds == 1 else ""


def _names(candidates: Sequence[Candidate], limit: int = 3) -> str:
    names = ", ".join(f"{candidate.label} ({show(candidate.value)}, {_p(candidate)})" for candidate in candidates[:limit])
    return names + (f" and {len(candidates) - limit} more" if len(candidates) > limit else "")


def _p(candidate: Candidate) -> str:
    if candidate.p is None:
        return "one seed" if candidate.seeds == 1 else "fewer than two common seeds"
    return f"p {show_p(candidate.p)}"


def _cost(candidate: Candidate) -> str:
    """Format the training time and the stored size of a strategy."""
    return f"{show_seconds(candidate.seconds)}, {show_bytes(candidate.stored_bytes)}"


def show(value: float) -> str:
    """Format a metric with three decimals, or fewer for large numbers."""
    return number(value, 3)


def show_p(p: float) -> str:
    """Format a p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def show_seconds(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours."""
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit or seconds == unit:
            return f"{seconds / unit:.1f}".removesuffix(".0") + f" {word}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def show_bytes(size: float) -> str:
    """Format a number of bytes in B, kB, MB or GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"

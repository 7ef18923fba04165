"""The advice of a comparison: which strategy to take, and why, in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

from nlp_transfer.utils.console import number

SIGNIFICANT, INDISTINGUISHABLE = 0.05, 0.5  # p-values below the first, and from the second on


@dataclass(frozen=True)
class Candidate:
    """A strategy with its mean metric, its costs, and the p-value of the paired test against the best strategy.

    `p` is None without a test: for the best strategy itself, or with fewer than two common seeds.
    """

    label: str
    value: float
    seconds: float
    stored_bytes: int
    p: float | None = None
    seeds: int = 1


def advise(candidates: Sequence[Candidate], metric: str, higher: bool, split: str, compared: int | None = None) -> str:
    """Return which strategy to take and why.

    This is the strategy with the best mean. With three or more seeds, strategies with `p` of 0.5 or more (a difference of at most
    one standard error, as in the rule of Breiman et al. 1984) count as equally good; of these the fastest to train is taken, and
    of equally fast ones the smallest. The advice says so if the lead is uncertain (`p` of 0.05 or more, or no test).

    Args:
        candidates: the first is the one that all are compared with.
        compared: the number of strategies, including those without a metric.
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
            f"{best.label} ({show(best.value)}, {_p(cheapest)}), and it is the cheapest of these ({cost(cheapest)}; "
            f"{best.label}: {cost(best)})"
        )
    elif equal:
        text = (
            f"Take {best.label}: it has the best mean ({score}) and is the cheapest ({cost(best)}) of those that are not "
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


def cost(candidate: Candidate) -> str:
    """Return training time and stored size as text."""
    return f"{show_seconds(candidate.seconds)}, {show_bytes(candidate.stored_bytes)}"


def show(value: float) -> str:
    """Return a metric with three decimals, or the digits that matter."""
    return number(value, 3)


def show_p(p: float) -> str:
    """Return a p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def show_seconds(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit or seconds == unit:
            return f"{seconds / unit:.1f}".removesuffix(".0") + f" {word}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def show_bytes(size: float) -> str:
    """Return a size in B, kB, MB or GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"

"""Accept only regular expressions of tokenizers that match in time proportional to the length of the text.

The library that matches them (Oniguruma) backtracks, so a hostile pattern could take exponential time. A pattern is accepted only
if its structure limits the backtracking steps from each position, or if their number is proportional to the number of characters
that the match consumes. Groups may have no quantifier except `?`. In each alternative, at most one unbounded quantifier `X+` may
come before something that can fail (`\\s+(?!\\S)`). Then a later alternative (`\\s+`) must consume the same characters, because
otherwise the search would restart at each of them. The patterns of GPT-2, GPT-4, Llama 3, Qwen, CLIP, DeepSeek and XLM-R are
accepted.
"""

import re
from dataclasses import dataclass, field

import regex

from nlp_transfer.utils.errors import UserError

MAX_CHARACTERS = 4000
MAX_REPEATS = 100  # maximum n and m in {n,m}
MAX_STEPS = 2000  # maximum steps of a search from one position, not counting consumed characters
MAX_DEPTH = 10  # maximum depth of nested groups
# All other escapes are refused: references to groups, calls of groups, \K, \G, \R, \X ...
_ESCAPE = r"\\(?:[sSdDwWhHrntfvbBAzZ]|[pP]\{\^?[\w ]+\}|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|[^A-Za-z0-9_])"
# A class (which may contain other classes and does not begin with ]), an escape, or a character without a special meaning.
_CLASS = rf"(?<class>\[(?!\^?\])(?:{_ESCAPE}|[^\[\]\\]|(?&class))*+\])"
ELEMENT = regex.compile(rf"{_CLASS}|{_ESCAPE}|[^\[\\(|)*+?{{]", regex.ASCII)
GROUP = re.compile(r"\((?:\?(?P<kind>:|i:|=|!|<!))?(?!\?)")
QUANTIFIER = re.compile(r"[*+?]|\{(?P<least>\d{1,4})?(?P<comma>,)?(?P<most>\d{1,4})?\}", re.ASCII)
ANCHORS = ("^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z")


class PatternError(UserError):
    """A pattern was refused; the message is the reason."""


@dataclass
class _Item:
    """One element of an alternative, with its quantifier.

    Attributes:
        text: the pattern of the element.
        kind: `one` (a character or class), `group`, or the sign of a lookaround (`=`, `!`, `<!`).
        least, most: minimum and maximum repetitions; `most` is None for an unbounded quantifier.
        inner: the alternatives in a group or lookaround.
    """

    text: str
    kind: str = "one"
    least: int = 1
    most: int | None = 1
    inner: "list[list[_Item]]" = field(default_factory=list)


@dataclass
class _Cost:
    """The cost of an alternative.

    Attributes:
        fails: whether it can fail after a partial match.
        paths: number of ways to match the same text.
        steps: maximum steps of one attempt.
        backtracking: elements with an unbounded quantifier that may backtrack.
    """

    fails: bool
    paths: int = 1
    steps: int = 0
    backtracking: list[_Item] = field(default_factory=list)


def linear_pattern(pattern: str) -> str:
    """Return an equivalent pattern that matches in linear time.

    The pattern is returned unchanged, except that `X+` before an anchor (DeepSeek's `\\s+$`) gets a lookbehind, so that a search
    starts only at the first X: `(?<!\\s)\\s+$`.

    Raises:
        PatternError: the pattern may take more than linear time, or uses syntax that is not supported here.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise PatternError(f"{len(pattern):,} characters; allowed: up to {MAX_CHARACTERS:,}")
    alternatives, end = _alternatives(pattern, 0, "", 0)
    if end < len(pattern):
        raise PatternError("an unmatched closing parenthesis")
    alternatives = _without_outer_groups(alternatives)
    costs = [_cost(alternative, False) for alternative in alternatives]
    steps = sum(cost.paths * (cost.steps + 1) for cost in costs)
    if steps > MAX_STEPS:
        raise PatternError(f"up to {steps:,} steps at each character of a text; allowed: up to {MAX_STEPS:,}")
    for i, cost in enumerate(costs):
        if len(cost.backtracking) > 1:
            raise PatternError("two unbounded quantifiers before something that can fail; allowed: one")
        if cost.backtracking and not _is_amortized(i, alternatives, costs):
            text = cost.backtracking[0].text
            if len(alternatives) > 1 or alternatives[0][0] is not cost.backtracking[0] or text.startswith("(?i)"):
                raise PatternError(
                    f"an unbounded quantifier ({text}+) before something that can fail, and no alternative {text}+ after it, so "
                    "the search can start again at each character"
                )
            return f"(?<!{text}){pattern}"
    return pattern


def _is_amortized(i: int, alternatives: list[list[_Item]], costs: list[_Cost]) -> bool:
    """Return whether the characters that alternative `i` backtracks over are read a bounded number of times.

    There are two such cases. Either a lookbehind allows a match to start only at the first of these characters, or the next
    alternative that does not backtrack over them consumes all of them. If the match ends earlier, a search in the remaining
    characters finds no other match, because a greedy quantifier ends at the last position where the rest of the pattern matches.
    """
    item = costs[i].backtracking[0]
    first = alternatives[i][0]
    lookbehind = [[(element.text, element.most) for element in branch] for branch in first.inner]
    if first.kind == "<!" and lookbehind == [[(item.text, 1)]]:
        return True
    for alternative, cost in list(zip(alternatives, costs, strict=True))[i + 1 :]:
        if cost.backtracking:
            if cost.backtracking[0].text != item.text:
                return False
            continue
        return _consumes(alternative, item)
    return False


def _consumes(alternative: list[_Item], item: _Item) -> bool:
    """Return whether an alternative matches at every character that the item matches, and consumes the entire run."""
    for element in alternative:
        if element.most is None:
            return element.text == item.text and element.least <= 1
        if element.least:
            return False
    return False


def _without_outer_groups(alternatives: list[list[_Item]]) -> list[list[_Item]]:
    """Flatten groups that make up a complete alternative: `(?:a|b)|c` becomes `a|b|c`."""
    flat = []
    for alternative in alternatives:
        single = alternative[0] if len(alternative) == 1 else None
        if single is not None and single.kind == "group" and (single.least, single.most) == (1, 1):
            flat += _without_outer_groups(single.inner)
        else:
            flat.append(alternative)
    return flat


def _cost(alternative: list[_Item], fails: bool) -> _Cost:
    """Return the cost of an alternative. `fails` says whether something after it can fail."""
    cost = _Cost(fails)
    for item in reversed(alternative):
        if item.kind == "one":
            if item.most is None and cost.fails:
                cost.backtracking.append(item)
            if item.most is not None and cost.fails:
                cost.paths *= item.most - item.least + 1
            cost.steps += item.least if item.most is None else item.most
        else:
            inner = [_cost(branch, True if item.kind != "group" else cost.fails) for branch in item.inner]
            if any(branch.backtracking for branch in inner):
                raise PatternError("an unbounded quantifier in a group or lookahead, before something that can fail")
            cost.steps += sum(branch.paths * (branch.steps + 1) for branch in inner)
            if cost.fails and item.kind == "group":
                cost.paths *= sum(branch.paths for branch in inner) + (item.least == 0)
        if item.least:
            cost.fails = True
        if cost.paths > MAX_STEPS:
            raise PatternError(f"more than {MAX_STEPS:,} ways to match one text")
    return cost


def _alternatives(pattern: str, at: int, flags: str, depth: int) -> tuple[list[list[_Item]], int]:
    """Parse alternatives up to a closing parenthesis or the end of the pattern. Return them, and the position of their end."""
    if depth > MAX_DEPTH:
        raise PatternError(f"groups nested more than {MAX_DEPTH} deep")
    alternatives: list[list[_Item]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            alternatives.append([])
            at += 1
            continue
        item, at = _element(pattern, at, flags, depth)
        at = _quantify(item, pattern, at)
        alternatives[-1].append(item)
    return alternatives, at


def _element(pattern: str, at: int, flags: str, depth: int) -> tuple[_Item, int]:
    """Parse one element without its quantifier. Return the element, and the position after it."""
    if pattern[at] == "(":
        group = GROUP.match(pattern, at)
        if group is None:
            raise PatternError(
                f"an unsupported group: {pattern[at : at + 8]}; allowed: (...), (?:...), (?i:...), (?=...), (?!...)"
            )
        kind = group["kind"] or ":"
        inner, end = _alternatives(pattern, group.end(), "(?i)" if kind == "i:" else flags, depth + 1)
        if end >= len(pattern):
            raise PatternError("an unclosed parenthesis")
        return _Item(pattern[at : end + 1], kind if kind in ("=", "!", "<!") else "group", inner=inner), end + 1
    element = ELEMENT.match(pattern, at)
    if element is None:
        raise PatternError(f"an unsupported escape or class, or a quantifier with nothing before it: {pattern[at : at + 8]}")
    return _Item(flags + element[0]), element.end()


def _quantify(item: _Item, pattern: str, at: int) -> int:
    """Parse the quantifier of an element, if there is one. Return the position after it."""
    quantifier = QUANTIFIER.match(pattern, at)
    if quantifier is None:
        if pattern[at : at + 1] == "{":
            raise PatternError(f"a brace that is not a quantifier: {pattern[at : at + 8]}; allowed: \\{{")
        return at
    sign, at = quantifier[0], quantifier.end()
    if sign in "*+?":
        item.least, item.most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if pattern[at : at + 1] == "+" or (sign == "?" and pattern[at : at + 1] == "?"):  # possessive (X++), or lazy (X??)
            at += 1
    else:
        least, most = (int(quantifier[name]) if quantifier[name] else None for name in ("least", "most"))
        if least is None and most is None:
            raise PatternError(f"a brace that is not a quantifier: {sign}; allowed: \\{{")
        item.least, item.most = least or 0, most if quantifier["comma"] else least
        if max(item.least, item.most or 0) > MAX_REPEATS or (item.most is not None and item.most < item.least):
            raise PatternError(f"a quantifier {sign}; allowed: up to {MAX_REPEATS} repeats")
    if QUANTIFIER.match(pattern, at):
        raise PatternError(f"two quantifiers in a row, or a lazy quantifier: {sign}{pattern[at : at + 8]}; allowed: greedy ones")
    if item.text.removeprefix("(?i)") in ANCHORS or item.kind in ("=", "!", "<!"):
        raise PatternError(f"a quantified anchor or lookaround: {item.text[:20]}{sign}")
    if item.kind == "group" and (item.least, item.most) not in ((0, 1), (1, 1)):
        raise PatternError(f"a quantified group: {item.text[:40]}{sign}; allowed: groups with ?")
    return at


def shortest_match(pattern: str) -> int:
    """Return a lower bound of the number of characters that an accepted pattern matches."""

    def shortest(alternatives: list[list[_Item]]) -> int:
        return min(sum(item.least * width(item) for item in alternative) for alternative in alternatives)

    def width(item: _Item) -> int:
        if item.kind == "group":
            return shortest(item.inner)
        return int(item.kind == "one" and item.text.removeprefix("(?i)") not in ANCHORS)

    return shortest(_alternatives(pattern, 0, "", 0)[0])

"""Regular expressions in tokenizer files: accept those that match any text in time proportional to its length.

The library that matches them (Oniguruma) backtracks. A pattern is accepted if, by its structure, backtracking from one position
of the text takes a bounded number of steps or is paid for by the characters that the match consumes. So a quantified group is
refused (other than by `?`), and an unbounded quantifier `X+` may be followed by something that can fail (`\\s+(?!\\S)`) only once
in an alternative, and only if a later alternative (`\\s+`) then consumes the same characters: otherwise the search would begin
anew at each of them. The patterns of GPT-2, GPT-4, Llama 3, Qwen, CLIP, DeepSeek and XLM-R are of this kind.
"""

import re
from dataclasses import dataclass, field

from nlp_transfer.utils.errors import UserError

MAX_CHARACTERS = 4000
MAX_REPEATS = 100  # of {n,m}
MAX_STEPS = 2000  # that a search may take from one position, apart from characters that it consumes
DEEPEST = 10  # groups within groups
# Everything else that begins with a backslash is refused: references to groups, calls of groups, \K, \G, \R, \X ...
ESCAPE = re.compile(
    r"\\(?:[sSdDwWhHrntfvbBAzZ]|[pP]\{\^?[\w ]+\}|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|[^A-Za-z0-9_])", re.ASCII
)
GROUP = re.compile(r"\((?:\?(?P<kind>:|i:|=|!|<!))?(?!\?)")
QUANTIFIER = re.compile(r"[*+?]|\{(?P<least>\d{1,4})?(?P<comma>,)?(?P<most>\d{1,4})?\}", re.ASCII)
ANCHORS = ("^", "$", r"\b", r"\B", r"\A", r"\z", r"\Z")


class PatternError(UserError):
    """Why a pattern is refused."""


@dataclass
class _Item:
    """One element of an alternative with its quantifier; `most` is None where it is unbounded.

    `text` identifies the characters of an element without inner alternatives; `kind` is `one`, `group` or a lookaround's sign.
    """

    text: str
    kind: str = "one"
    least: int = 1
    most: int | None = 1
    inner: "list[list[_Item]]" = field(default_factory=list)


@dataclass
class _Cost:
    """Of an alternative: whether it can fail, how many ways to match and steps there are, and what backtracks unboundedly."""

    fails: bool
    ways: int = 1
    steps: int = 0
    backtracking: list[_Item] = field(default_factory=list)


def linear_pattern(pattern: str) -> str:
    """Return a pattern that matches the same and does so in linear time.

    This is the pattern itself, except that a search for `X+` with an end (DeepSeek's `\\s+$`) is told to begin at the first X
    only: `(?<!\\s)\\s+$`.

    Raises:
        PatternError: its structure permits more than linear time, or it is not of the small language that is read here.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise PatternError(f"{len(pattern):,} characters; allowed: up to {MAX_CHARACTERS:,}")
    alternatives, end = _alternatives(pattern, 0, "", 0)
    if end < len(pattern):
        raise PatternError("a parenthesis that closes nothing")
    alternatives = _without_outer_groups(alternatives)
    costs = [_cost(alternative, False) for alternative in alternatives]
    steps = sum(cost.ways * (cost.steps + 1) for cost in costs)
    if steps > MAX_STEPS:
        raise PatternError(f"up to {steps:,} steps at each character of a text; allowed: up to {MAX_STEPS:,}")
    for i, cost in enumerate(costs):
        if len(cost.backtracking) > 1:
            raise PatternError("two unbounded quantifiers in a row with something after them that can fail; allowed: one")
        if cost.backtracking and not _paid_for(i, alternatives, costs):
            first = alternatives[0][0]
            if len(alternatives) > 1 or first is not cost.backtracking[0] or first.text.startswith("(?i)"):
                text = cost.backtracking[0].text
                raise PatternError(
                    f"an unbounded quantifier ({text}+) with something after it that can fail, and no alternative {text}+ next, "
                    "so that the search can begin anew at each character"
                )
            return f"(?<!{first.text}){pattern}"
    return pattern


def _paid_for(i: int, alternatives: list[list[_Item]], costs: list[_Cost]) -> bool:
    """Whether the characters that alternative i can backtrack over are read a bounded number of times.

    Either it begins where no such character is before it, or the next alternative (after others that backtrack over the same
    characters) consumes them all. A greedy quantifier ends at the last place where the rest matches, so that no search in what
    remains of a run of characters finds another.
    """
    item = costs[i].backtracking[0]
    first = alternatives[i][0]
    if first.kind == "<!" and [[(part.text, part.most) for part in inner] for inner in first.inner] == [[(item.text, 1)]]:
        return True
    for alternative, cost in list(zip(alternatives, costs, strict=True))[i + 1 :]:
        if cost.backtracking:
            if cost.backtracking[0].text != item.text:
                return False
            continue
        return _consumes(alternative, item)
    return False


def _consumes(alternative: list[_Item], item: _Item) -> bool:
    """Whether an alternative matches wherever the characters of an item are, and takes all of them."""
    for part in alternative:
        if part.most is None:
            return part.text == item.text and part.least <= 1
        if part.least:
            return False
    return False


def _without_outer_groups(alternatives: list[list[_Item]]) -> list[list[_Item]]:
    """`(?:a|b)|c` as `a|b|c`."""
    flat = []
    for alternative in alternatives:
        alone = alternative[0] if len(alternative) == 1 else None
        if alone is not None and alone.kind == "group" and (alone.least, alone.most) == (1, 1):
            flat += _without_outer_groups(alone.inner)
        else:
            flat.append(alternative)
    return flat


def _cost(alternative: list[_Item], fails: bool) -> _Cost:
    """Of an alternative before something that can fail, or cannot."""
    cost = _Cost(fails)
    for item in reversed(alternative):
        if item.kind == "one":
            if item.most is None and cost.fails:
                cost.backtracking.append(item)
            if item.most is not None and cost.fails:
                cost.ways *= item.most - item.least + 1
            cost.steps += item.least if item.most is None else item.most
        else:
            inner = [_cost(part, True if item.kind != "group" else cost.fails) for part in item.inner]
            if any(part.backtracking for part in inner):
                raise PatternError("an unbounded quantifier in a group, or in a lookahead, with something after it that can fail")
            cost.steps += sum(part.ways * (part.steps + 1) for part in inner)
            if cost.fails and item.kind == "group":
                cost.ways *= sum(part.ways for part in inner) + (item.least == 0)
        if item.least:
            cost.fails = True
        if cost.ways > MAX_STEPS:
            raise PatternError(f"more than {MAX_STEPS:,} ways to match one text")
    return cost


def _alternatives(pattern: str, at: int, flags: str, depth: int) -> tuple[list[list[_Item]], int]:
    """Read alternatives up to a closing parenthesis or the end; also the position of that."""
    if depth > DEEPEST:
        raise PatternError(f"groups nested more than {DEEPEST} deep")
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
    sign = pattern[at]
    if sign == "(":
        group = GROUP.match(pattern, at)
        if group is None:
            raise PatternError(
                f"a group of another kind: {pattern[at : at + 8]}; allowed: (...), (?:...), (?i:...), (?=...), (?!...)"
            )
        kind = group["kind"] or ":"
        inner, end = _alternatives(pattern, group.end(), "(?i)" if kind == "i:" else flags, depth + 1)
        if end >= len(pattern):
            raise PatternError("a parenthesis that is not closed")
        return _Item(pattern[at : end + 1], kind if kind in ("=", "!", "<!") else "group", inner=inner), end + 1
    if sign == "[":
        end = _class_end(pattern, at)
    elif sign == "\\":
        escape = ESCAPE.match(pattern, at)
        if escape is None:
            raise PatternError(f"an escape of another kind: {pattern[at : at + 4]}")
        end = escape.end()
    elif sign in "*+?{":
        raise PatternError(f"a quantifier without anything before it: {pattern[at : at + 8]}")
    else:
        end = at + 1
    return _Item(flags + pattern[at:end]), end


def _class_end(pattern: str, at: int) -> int:
    """Just after a class in brackets, with classes inside it."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            escape = ESCAPE.match(pattern, at)
            if escape is None:
                raise PatternError(f"an escape of another kind: {pattern[at : at + 4]}")
            at = escape.end()
            continue
        if pattern[at] == "[":
            depth += 1
            if pattern[at + 1 : at + 2] == "]" or pattern[at + 1 : at + 3] == "^]":
                raise PatternError("a class that begins with ]; allowed: \\]")
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    raise PatternError("a bracket that is not closed")


def _quantify(item: _Item, pattern: str, at: int) -> int:
    """Set how often an element is repeated; the position after the quantifier."""
    quantifier = QUANTIFIER.match(pattern, at)
    if quantifier is None:
        if pattern[at : at + 1] == "{":
            raise PatternError(f"a brace that is no quantifier: {pattern[at : at + 8]}; allowed: \\{{")
        return at
    sign, at = quantifier[0], quantifier.end()
    if sign in "*+?":
        item.least, item.most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        if pattern[at : at + 1] == "+" or (sign == "?" and pattern[at : at + 1] == "?"):  # possessive; lazy
            at += 1
    else:
        least, most = (int(quantifier[name]) if quantifier[name] else None for name in ("least", "most"))
        if least is None and most is None:
            raise PatternError(f"a brace that is no quantifier: {sign}; allowed: \\{{")
        item.least, item.most = least or 0, most if quantifier["comma"] else least
        if max(item.least, item.most or 0) > MAX_REPEATS or (item.most is not None and item.most < item.least):
            raise PatternError(f"a quantifier {sign}; allowed: up to {MAX_REPEATS} repeats")
    if QUANTIFIER.match(pattern, at):
        raise PatternError(f"two quantifiers in a row, or a lazy one: {sign}{pattern[at : at + 8]}; allowed: greedy ones")
    if item.text.removeprefix("(?i)") in ANCHORS or item.kind in ("=", "!", "<!"):
        raise PatternError(f"a quantifier of a position: {item.text[:20]}{sign}")
    if item.kind == "group" and (item.least, item.most) not in ((0, 1), (1, 1)):
        raise PatternError(f"a quantified group: {item.text[:40]}{sign}; allowed: groups with ?")
    return at


def shortest_match(pattern: str) -> int:
    """Characters of the shortest text that an accepted pattern can match; for some patterns less than that."""

    def least(alternatives: list[list[_Item]]) -> int:
        return min(sum(item.least * _width(item) for item in alternative) for alternative in alternatives)

    def _width(item: _Item) -> int:
        if item.kind == "group":
            return least(item.inner)
        return int(item.kind == "one" and item.text.removeprefix("(?i)") not in ANCHORS)

    return least(_alternatives(pattern, 0, "", 0)[0])

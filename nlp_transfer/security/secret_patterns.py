"""What is secret in a text: found as it stands and in the usual encodings, and replaced by `***`.

The values that this machine keeps secret (the hub's token, environment variables that are named like secrets) are known to the
letter. Others are recognized by their shape (tokens of well-known services, private keys) or by what stands before them (names
and passwords in addresses, credentials in headers, values that are said to be a token). Both are also looked for behind escapes
(percent-encoding, JSON, Python, HTML, UTF-16), in base64 and in hexadecimal, and known values behind line breaks.
`redactor` applies this to whatever a command prints.
"""

import binascii
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

from nlp_transfer.security.known_secrets import HEAD, LEAST, Known, known_secrets

HIDDEN = "***"
DEPTH = 3  # encodings inside one another that are looked through
LONGEST_KEY = 1 << 14  # characters of a private key

# How a token of a well-known service begins.
PREFIX = r"(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|AIza|ya29\.|AKIA|ASIA|xox[abeoprs]-|pypi-|eyJ)"
KINDS = (
    r"hf_[A-Za-z0-9]{16,}", r"api_org_[A-Za-z0-9]{16,}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{20,}", r"github_pat_[A-Za-z0-9_]{20,}",  # GitHub
    r"glpat-[A-Za-z0-9_-]{16,}",  # GitLab
    # OpenAI and the like (not the names of models, as in `opus-mt-sk-en`), Google
    r"(?<![A-Za-z0-9_-])sk-(?=[a-z_-]*[A-Z0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{20,}",
    r"AIza[A-Za-z0-9_-]{30,}", r"ya29\.[A-Za-z0-9_-]{20,}",
    r"AKIA[A-Z0-9]{16}", r"ASIA[A-Z0-9]{16}",  # AWS
    r"xox[abeoprs]-[A-Za-z0-9_-]{10,}",  # Slack
    r"pypi-[A-Za-z0-9_-]{40,}",  # PyPI
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",  # JSON web tokens
)  # fmt: skip
CUT = (  # by a message
    r"(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|AIza|xox[abeoprs]-|pypi-AgEI)"
    r"(?=[a-z_-]*[A-Z0-9])[\w-]{6,}(?:\.\.\.|…)[\w-]*"
)
SHAPES = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(KINDS)}|{CUT})")
IN_BYTES = [re.compile(kind.encode()) for kind in KINDS]  # one by one, since each is found fast by what it begins with
KEY_BLOCK = re.compile(
    rf"-----BEGIN [A-Z ]{{0,40}}PRIVATE KEY-----"
    rf"(?:.{{0,{LONGEST_KEY}}}?-----END [A-Z ]{{0,40}}PRIVATE KEY-----|(?:\s+(?:[\w-]+:[^\n]*|[A-Za-z0-9+/=]+)(?=\s|\Z))*)",
    re.DOTALL,
)
SECRET_WORD = r"(?:(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!bos_)(?<!eos_)(?<!mask_)token|secret|passw(?:or)?d|api[_-]?key)"
# Repeats are bounded, so that a long line takes time in proportion to its length.
SAID = (
    rf"(?:(?:(?<!\w)|(?<=\w{{64}}))[\w.-]{{0,64}}{SECRET_WORD}['\"]?\s{{0,64}}[:=]\s{{0,64}}"
    rf"|--[\w.-]{{0,64}}{SECRET_WORD}\s{{1,64}})(?P<quote>['\"]?)"
)
BEARER = r"\b(?:bearer|authorization:?)\s+(?!bearer\b)"
BASIC = r"\bbasic\s+"
QUERY = r"[?&](?:[\w.-]{0,64}(?:token|secret|password|signature|credential|api[_-]?key)|sig|key)="
ADDRESS = r"\b[a-z][a-z0-9+.-]{0,30}:/{1,2}"  # one slash is enough: taken for a path, an address loses the other


class Rule(NamedTuple):
    """A secret that is recognized by what stands around it."""

    marks: tuple[str, ...]
    """Nothing matches in a text that, in lower case, holds none of these."""
    pattern: re.Pattern[str]
    """Of a complete secret; its group `value` is hidden."""
    begun: re.Pattern[str]
    """Of one that the end of the text cuts off."""


def _rule(marks: str, before: str, value: str, begun: str, after: str = "") -> Rule:
    return Rule(
        tuple(marks.split()),
        re.compile(f"{before}(?P<value>{value}){after}", re.IGNORECASE),
        re.compile(rf"{before}(?P<value>{begun})\Z", re.IGNORECASE),
    )


RULES = (
    _rule(":/", ADDRESS, r"[^\s/?#'\"<>@]+(?:@[^\s/?#'\"<>@]+)*", r"[^\s/?#'\"<>]*", "@"),
    _rule("=", QUERY, r"[^\s&'\"<>#]+", r"[^\s&'\"<>#]*"),
    _rule("bearer authorization", BEARER, r"[\w.~+/=-]{16,}", r"[\w.~+/=-]*"),
    _rule("basic", BASIC, r"[\w+/-]{6,}={0,2}", r"[\w+/-]*"),
    # `token: abc`, `"hf_token": "abc"`, `password=abc`, `--token abc`.
    _rule("token secret passw api", SAID, r"[^\s'\",;{}()<>\[\]]{6,}", r"[^\s'\",;{}()<>\[\]]*"),
)
NAMES = re.compile(
    r"^(?:(?:use|hf|hub|auth|access|api|bot|github|wandb|secret)[_-])*"
    r"(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|secret[_-]?key|credentials?)$",
    re.IGNORECASE,
)
USERS_OWN = (
    "labels",
    "class_weights",
    "id2label",
    "label2id",
)  # in records: words of the user's data, which are kept to the letter

ESCAPED = re.compile(r"[%\\&\0\x1b]")
ESCAPE = re.compile(
    r"%(?P<percent>[0-9A-Fa-f]{2})|\\u\{?(?P<u>[0-9A-Fa-f]{4})\}?|\\x(?P<x>[0-9A-Fa-f]{2})|\\U(?P<long>000[0-9A-Fa-f]{5})"
    r"|\\(?P<octal>[0-7]{3})|\\(?P<plain>[^\w\s]|[nrt])|&\#(?P<number>\d{1,7});|&\#[xX](?P<hex>[0-9A-Fa-f]{1,6});"
    r"|&(?P<name>amp|lt|gt|quot|apos);|\0+|\x1b\[[0-9;]*m"
)
NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "n": "\n", "r": "\r", "t": "\t"}
BREAK = re.compile(r"[ \t│┃|]*\r?\n[ \t│┃|>]*")  # also of tables and of quoted messages
RUN = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}={0,2}")  # a token in base64 or in hexadecimal
SIXTY_FOUR = str.maketrans("-_", "+/")

# Of a token, or of one in base64, what a write may end with.
BEGUN = re.compile(
    rf"(?:(?<![A-Za-z0-9_]){PREFIX}[\w.-]*…?|(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{16,}}={{0,2}}|-----BEGIN [A-Z -]*)\Z"
)
PARTIAL = re.compile(
    r"(?:%[0-9A-Fa-f]?|\\+(?:u\{?[0-9A-Fa-f]{0,4}|x[0-9A-Fa-f]?|U[0-9A-Fa-f]{0,7}|[0-7]{1,2})?|&\#?[0-9A-Za-z]{0,7}|\x1b(?:\[[0-9;]*)?)\Z"
)  # escapes that the end of the text cuts off
NOTED = 4  # characters of a known value at the end of a write from which on it is held back
LONGEST_LINE = 1 << 12

Spans = list[tuple[int, int]]


def redact(text: str) -> str:
    """The text without what is secret in it."""
    return hide(text, spans(text))


def hide(text: str, found: Spans, first: int = 0, last: int | None = None) -> str:
    """A part of the text, with `***` in place of what was found."""
    last = len(text) if last is None else last
    parts = []
    for start, end in found:
        if end > first and start < last:
            parts += [text[first:start], HIDDEN]
            first = end
    return "".join([*parts, text[first:last]])


def find_secret(text: str) -> int | None:
    """Where the first secret stands that is known to the letter or by the shape of its token; None where there is none.

    Words that are merely said to be a token do not count: a vocabulary is full of them.
    """
    return min((start for start, _ in spans(text, strict=True)), default=None)


def is_in_bytes(data: bytes) -> bool:
    """Whether numbers, such as weights, hold a secret as it stands: as `find_secret`, but for no encoding, and fast."""
    return any(value.value.encode() in data for value in known_secrets()) or any(kind.search(data) for kind in IN_BYTES)


def spans(text: str, strict: bool = False) -> Spans:
    """Where secrets stand, in order and apart from one another; `strict` as in `find_secret`."""
    merged: Spans = []
    for start, end in sorted(_spans(text, known_secrets(), strict, 0)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def begun(text: str, found: Spans) -> int:
    """Where something begins that the end of the text cuts off and that may be, or go on to be, a secret.

    Args:
        text: what is followed by more.
        found: the secrets in it.
    """
    known = known_secrets()
    starts = [len(text), _begun(text, known, 0)]
    if found and (
        found[-1][1] == len(text) or (text[slice(*found[-1])].startswith("-----BEGIN") and text[found[-1][1] :].isspace())
    ):
        starts.append(found[-1][0])
    if known and "\n" in text:  # it may go on after a line break
        view, source = _replaced(BREAK, text, lambda _: "")
        starts += [source(at, at)[0] for value in known if (at := value.begun(view, HEAD)) is not None]
    return min(starts)


def _begun(text: str, known: tuple[Known, ...], depth: int) -> int:
    size, text = len(text), PARTIAL.sub("", text)
    starts = [at for value in known if (at := value.begun(text, NOTED)) is not None]
    line = max(text.rfind("\n"), text.rfind("\r")) + 1
    line = max(line, len(text) - LONGEST_LINE)
    tail = text[line:]
    low = tail.lower()
    rules = [rule for rule in RULES if any(word in low for word in rule.marks)]
    starts += [line + match.start("value") for rule in rules if (match := rule.begun.search(tail))]
    starts += [line + match.start() for match in (BEGUN.search(tail),) if match]
    if depth < DEPTH and ESCAPED.search(tail):
        view, source = unescaped(tail)
        if view != tail:
            at = _begun(view, known, depth + 1)
            starts += [line + source(at, at)[0]] if at < len(view) else []
    return min(starts, default=size)


def _spans(text: str, known: tuple[Known, ...], strict: bool, depth: int) -> Spans:
    found: Spans = []

    def mark(start: int, end: int) -> None:
        nonlocal text
        found.append((start, end))
        text = f"{text[:start]}{'*' * (end - start)}{text[end:]}"  # so that no other rule takes it for more than it is

    original = text
    for value in known:
        for span in value.spans(text):
            mark(*span)
    if "PRIVATE KEY" in text:
        for match in KEY_BLOCK.finditer(text):
            mark(*match.span())
    low = "" if strict else text.lower()
    for rule in RULES[:2]:
        _apply(rule, text, low, mark)
    for match in SHAPES.finditer(text):
        mark(*match.span())
    for rule in RULES[2:]:
        _apply(rule, text, low, mark)
    if depth == DEPTH:
        return found
    for match in RUN.finditer(original):
        if any(_spans(inner, known, True, depth + 1) for inner in _decoded(match[0])):
            found.append(match.span())
    if ESCAPED.search(original):
        view, source = unescaped(original)
        if view != original:
            found += [source(*span) for span in _spans(view, known, strict, depth + 1)]
    if known and "\n" in original:
        view, source = _replaced(BREAK, original, lambda _: "")
        found += [source(*span) for value in known for span in value.spans(view, whole=True)]
    return found


def _apply(rule: Rule, text: str, low: str, mark: Any) -> None:
    if any(word in low for word in rule.marks):
        for match in rule.pattern.finditer(text):
            if not _is_harmless(match):
                mark(*match.span("value"))


def _is_harmless(match: "re.Match[str]") -> bool:
    """Whether a value that was said to be a secret is a number (`of the next token: 0.5312`), the next word of a message
    (`training.token: unknown setting`), hidden already, or after `basic` no credentials."""
    value, before = match["value"], match[0][: match.start("value") - match.start()]
    if match.re is RULES[3].pattern:
        return all(":" not in inner for inner in _decoded(value)[:1])
    if "quote" not in match.re.groupindex:
        return False
    number = len(value) < LEAST and re.fullmatch(r"[\d.,:%e+-]+", value)
    word = value.isalpha() and before.endswith(": ")
    return bool(number or word or value.startswith(HIDDEN))


# --- encodings


def unescaped(text: str) -> tuple[str, Any]:
    """The text without escapes, and what gives the span in the text of a span in it."""
    return _replaced(ESCAPE, text, _character)


def _character(match: "re.Match[str]") -> str:
    kind, value = match.lastgroup, match[match.lastgroup] if match.lastgroup else ""
    if kind is None:  # a zero byte, as between the letters of UTF-16, or a colour
        return ""
    if kind in ("plain", "name"):
        return NAMED.get(value, value)
    code = int(value, {"octal": 8, "number": 10}.get(kind, 16))
    return chr(code) if code < 0x110000 else "?"


def _replaced(pattern: "re.Pattern[str]", text: str, make: Any) -> tuple[str, Any]:
    parts: list[str] = []
    views, sources = [0], [0]  # places that correspond, between which both go on alike
    length = at = 0
    for match in pattern.finditer(text):
        made = make(match)
        length += match.start() - at
        views += [length, length + len(made)]
        sources += [match.start(), match.end()]
        parts += [text[at : match.start()], made]
        length, at = length + len(made), match.end()

    def source(start: int, end: int) -> tuple[int, int]:
        first = bisect_right(views, start) - 1
        last = bisect_left(views, end)
        last -= last == len(views) or views[last] != end
        return sources[first] + start - views[first], sources[last] + end - views[last]

    return "".join([*parts, text[at:]]), source


def _decoded(run: str) -> list[str]:
    """What a run of letters may stand for: base64 that begins at any of four letters, hexadecimal."""
    letters = run.rstrip("=").translate(SIXTY_FOUR)
    found = []
    for skipped in range(4):
        part = letters[skipped:]
        part = part[: len(part) - (len(part) % 4 == 1)]
        found.append(binascii.a2b_base64(part + "=" * (-len(part) % 4)).decode("latin-1"))
    for part in re.findall(r"(?:[0-9A-Fa-f]{2}){12,}", run):
        found.append(bytes.fromhex(part).decode("latin-1"))
    return found


# --- records


def clean(value: Any) -> Any:
    """A record (JSON) without what is secret in it; labels stay as they are, since an answer must be called as in the data."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: _field(key, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(inner) for inner in value]
    return value


def _field(name: Any, value: Any) -> Any:
    if name in USERS_OWN:
        return value
    if isinstance(name, str) and isinstance(value, str) and value and NAMES.match(name):
        return HIDDEN
    return clean(value)

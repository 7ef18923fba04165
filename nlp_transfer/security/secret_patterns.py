"""Find secrets in text, also in common encodings, and replace them with `***`.

The values of this machine's secrets are known (`known_secrets.py`). Other secrets are recognized by their shape (tokens of
well-known services, private keys) or by their context (credentials in URLs and headers, values named `token` or similar). All
secrets are also found in escaped text (percent-encoding, JSON, Python, HTML, UTF-16), base64 and hexadecimal. Known values are
also found across line breaks. `redaction.py` applies this to all output.
"""

import binascii
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

from nlp_transfer.security.known_secrets import MIN_LENGTH, PREFIX_LENGTH, Known, known_secrets

HIDDEN = "***"
DEPTH = 3  # levels of nested encodings to decode
LONGEST_KEY = 1 << 14  # characters of a private key

# Prefixes of tokens of well-known services.
PREFIX = r"(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|AIza|ya29\.|AKIA|ASIA|xox[abeoprs]-|pypi-|eyJ)"
KINDS = (
    r"hf_[A-Za-z0-9]{16,}", r"api_org_[A-Za-z0-9]{16,}",  # Hugging Face
    r"gh[pousr]_[A-Za-z0-9]{20,}", r"github_pat_[A-Za-z0-9_]{20,}",  # GitHub
    r"glpat-[A-Za-z0-9_-]{16,}",  # GitLab
    # OpenAI and others (but not model names such as `opus-mt-sk-en`), Google
    r"(?<![A-Za-z0-9_-])sk-(?=[a-z_-]*[A-Z0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{20,}",
    r"AIza[A-Za-z0-9_-]{30,}", r"ya29\.[A-Za-z0-9_-]{20,}",
    r"AKIA[A-Z0-9]{16}", r"ASIA[A-Z0-9]{16}",  # AWS
    r"xox[abeoprs]-[A-Za-z0-9_-]{10,}",  # Slack
    r"pypi-[A-Za-z0-9_-]{40,}",  # PyPI
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",  # JSON web tokens
)  # fmt: skip
TRUNCATED = (  # tokens that a message has shortened
    r"(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|AIza|xox[abeoprs]-|pypi-AgEI)"
    r"(?=[a-z_-]*[A-Z0-9])[\w-]{6,}(?:\.\.\.|…)[\w-]*"
)
SHAPES = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(KINDS)}|{TRUNCATED})")
IN_BYTES = [re.compile(kind.encode()) for kind in KINDS]  # separate, since a literal prefix makes each search fast
KEY_BLOCK = re.compile(
    rf"-----BEGIN [A-Z ]{{0,40}}PRIVATE KEY-----"
    rf"(?:.{{0,{LONGEST_KEY}}}?-----END [A-Z ]{{0,40}}PRIVATE KEY-----|(?:\s+(?:[\w-]+:[^\n]*|[A-Za-z0-9+/=]+)(?=\s|\Z))*)",
    re.DOTALL,
)
SECRET_WORD = r"(?:(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!bos_)(?<!eos_)(?<!mask_)token|secret|passw(?:or)?d|api[_-]?key)"
# Repetitions are bounded, so that matching takes linear time.
NAMED_VALUE = (
    rf"(?:(?:(?<!\w)|(?<=\w{{64}}))[\w.-]{{0,64}}{SECRET_WORD}['\"]?\s{{0,64}}[:=]\s{{0,64}}"
    rf"|--[\w.-]{{0,64}}{SECRET_WORD}\s{{1,64}})(?P<quote>['\"]?)"
)
BEARER = r"\b(?:bearer|authorization:?)\s+(?!bearer\b)"
BASIC = r"\bbasic\s+"
QUERY = r"[?&](?:[\w.-]{0,64}(?:token|secret|password|signature|credential|api[_-]?key)|sig|key)="
ADDRESS = r"\b[a-z][a-z0-9+.-]{0,30}:/{1,2}"  # one slash suffices, since pathlib removes the other from a URL


class Rule(NamedTuple):
    """Recognizes a secret by its context."""

    keywords: tuple[str, ...]
    """Every match contains at least one of these lower-case words, so texts without them need no search."""
    pattern: re.Pattern[str]
    """Matches a complete secret; the group `value` is replaced."""
    unfinished: re.Pattern[str]
    """Matches a secret at the end of the text if it may be incomplete."""

    def is_possible(self, lower: str) -> bool:
        """Whether the text, in lower case, contains a keyword."""
        return any(word in lower for word in self.keywords)


def _rule(keywords: str, before: str, value: str, unfinished: str, after: str = "") -> Rule:
    return Rule(
        tuple(keywords.split()),
        re.compile(f"{before}(?P<value>{value}){after}", re.IGNORECASE),
        re.compile(rf"{before}(?P<value>{unfinished})\Z", re.IGNORECASE),
    )


RULES = (
    _rule(":/", ADDRESS, r"[^\s/?#'\"<>@]+(?:@[^\s/?#'\"<>@]+)*", r"[^\s/?#'\"<>]*", "@"),
    _rule("=", QUERY, r"[^\s&'\"<>#]+", r"[^\s&'\"<>#]*"),
    _rule("bearer authorization", BEARER, r"[\w.~+/=-]{16,}", r"[\w.~+/=-]*"),
    _rule("basic", BASIC, r"[\w+/-]{6,}={0,2}", r"[\w+/-]*"),
    # `token: abc`, `"hf_token": "abc"`, `password=abc`, `--token abc`.
    _rule("token secret passw api", NAMED_VALUE, r"[^\s'\",;{}()<>\[\]]{6,}", r"[^\s'\",;{}()<>\[\]]*"),
)
NAMES = re.compile(
    r"^(?:(?:use|hf|hub|auth|access|api|bot|github|wandb|secret)[_-])*"
    r"(?:token|secret|password|passwd|api[_-]?key|access[_-]?key|secret[_-]?key|credentials?)$",
    re.IGNORECASE,
)
LABELS = ("labels", "class_weights", "id2label", "label2id")  # fields of records with words from the user's data, never redacted

ESCAPED = re.compile(r"[%\\&\0\x1b]")
ESCAPE = re.compile(
    r"%(?P<percent>[0-9A-Fa-f]{2})|\\u\{?(?P<u>[0-9A-Fa-f]{4})\}?|\\x(?P<x>[0-9A-Fa-f]{2})|\\U(?P<long>000[0-9A-Fa-f]{5})"
    r"|\\(?P<octal>[0-7]{3})|\\(?P<plain>[^\w\s]|[nrt])|&\#(?P<number>\d{1,7});|&\#[xX](?P<hex>[0-9A-Fa-f]{1,6});"
    r"|&(?P<name>amp|lt|gt|quot|apos);|\0+|\x1b\[[0-9;]*m"
)
NAMED = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "n": "\n", "r": "\r", "t": "\t"}
BREAK = re.compile(r"[ \t│┃|]*\r?\n[ \t│┃|>]*")  # a line break, also in tables and quoted messages
RUN = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{24,}={0,2}")  # may be a token in base64 or hexadecimal
URL_SAFE = str.maketrans("-_", "+/")

# An unfinished token, plain or in base64, at the end of a write.
UNFINISHED = re.compile(
    rf"(?:(?<![A-Za-z0-9_]){PREFIX}[\w.-]*…?|(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{16,}}={{0,2}}|-----BEGIN [A-Z -]*)\Z"
)
PARTIAL = re.compile(
    r"(?:%[0-9A-Fa-f]?|\\+(?:u\{?[0-9A-Fa-f]{0,4}|x[0-9A-Fa-f]?|U[0-9A-Fa-f]{0,7}|[0-7]{1,2})?|&\#?[0-9A-Za-z]{0,7}|\x1b(?:\[[0-9;]*)?)\Z"
)  # an unfinished escape at the end of the text
HELD_FROM = 4  # the end of a write is held back if it is the start of a known value with at least this many characters
LONGEST_LINE = 1 << 12

Spans = list[tuple[int, int]]


def redact(text: str, known: tuple[Known, ...] | None = None) -> str:
    """Replace all secrets in a text with `***`; `known` saves looking up this machine's secrets again for each of many texts."""
    return hide(text, spans(text, known=known))


def hide(text: str, secrets: Spans, first: int = 0, last: int | None = None) -> str:
    """Return `text[first:last]` with each span in `secrets` replaced by `***`."""
    last = len(text) if last is None else last
    parts = []
    for start, end in secrets:
        if end > first and start < last:
            parts += [text[first:start], HIDDEN]
            first = end
    return "".join([*parts, text[first:last]])


def find_secret(text: str) -> int | None:
    """Return the position of the first secret that is known or recognized by its shape; None if there is none.

    Secrets that are only recognized by their context are ignored, since vocabularies contain many such words.
    """
    return min((start for start, _ in spans(text, strict=True)), default=None)


def contains_secret(data: bytes) -> bool:
    """Whether binary data, such as weights, contains an unencoded secret. A fast version of `find_secret`."""
    return any(value.value.encode() in data for value in known_secrets()) or any(kind.search(data) for kind in IN_BYTES)


def spans(text: str, strict: bool = False, known: tuple[Known, ...] | None = None) -> Spans:
    """Return the spans of all secrets, sorted and without overlaps; if `strict`, only those that `find_secret` finds."""
    merged: Spans = []
    for start, end in sorted(_spans(text, known_secrets() if known is None else known, strict, 0)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def unfinished(text: str, secrets: Spans) -> int:
    """Return the start of a possible, incomplete secret at the end of the text, or the length of the text if there is none.

    Args:
        text: text to which more may be appended.
        secrets: spans of the secrets in the text.
    """
    known = known_secrets()
    starts = [len(text), _unfinished(text, known, 0)]
    if secrets:
        start, end = secrets[-1]
        if end == len(text) or (text[start:end].startswith("-----BEGIN") and text[end:].isspace()):
            starts.append(start)
    if known and "\n" in text:  # a value may be split by a line break
        view, source = _replaced(BREAK, text, lambda _: "")
        starts += [source(at, at)[0] for value in known if (at := value.unfinished(view, PREFIX_LENGTH)) is not None]
    return min(starts)


def _unfinished(text: str, known: tuple[Known, ...], depth: int) -> int:
    size, text = len(text), PARTIAL.sub("", text)
    starts = [at for value in known if (at := value.unfinished(text, HELD_FROM)) is not None]
    line = max(text.rfind("\n") + 1, text.rfind("\r") + 1, len(text) - LONGEST_LINE)
    tail = text[line:]
    rules = [rule for rule in RULES if rule.is_possible(tail.lower())]
    starts += [line + match.start("value") for rule in rules if (match := rule.unfinished.search(tail))]
    starts += [line + match.start() for match in (UNFINISHED.search(tail),) if match]
    if depth < DEPTH and ESCAPED.search(tail):
        view, source = unescaped(tail)
        if view != tail:
            at = _unfinished(view, known, depth + 1)
            starts += [line + source(at, at)[0]] if at < len(view) else []
    return min(starts, default=size)


def _spans(text: str, known: tuple[Known, ...], strict: bool, depth: int) -> Spans:
    """Return the spans of all secrets, unsorted; `depth` is the number of encodings that were decoded."""
    secrets: Spans = []

    def mark(start: int, end: int) -> None:
        nonlocal text
        secrets.append((start, end))
        text = f"{text[:start]}{'*' * (end - start)}{text[end:]}"  # so that no other rule matches it

    original = text
    for value in known:
        for span in value.spans(text):
            mark(*span)
    if "PRIVATE KEY" in text:
        for match in KEY_BLOCK.finditer(text):
            mark(*match.span())
    lower = "" if strict else text.lower()
    for rule in RULES[:2]:
        _apply(rule, text, lower, mark)
    for match in SHAPES.finditer(text):
        mark(*match.span())
    for rule in RULES[2:]:
        _apply(rule, text, lower, mark)
    if depth == DEPTH:
        return secrets
    for match in RUN.finditer(original):
        if any(_spans(inner, known, True, depth + 1) for inner in _decoded(match[0])):
            secrets.append(match.span())
    if ESCAPED.search(original):
        view, source = unescaped(original)
        if view != original:
            secrets += [source(*span) for span in _spans(view, known, strict, depth + 1)]
    if known and "\n" in original:
        view, source = _replaced(BREAK, original, lambda _: "")
        secrets += [source(*span) for value in known for span in value.spans(view, complete=True)]
    return secrets


def _apply(rule: Rule, text: str, lower: str, mark: Any) -> None:
    if rule.is_possible(lower):
        for match in rule.pattern.finditer(text):
            if not _is_harmless(match):
                mark(*match.span("value"))


def _is_harmless(match: "re.Match[str]") -> bool:
    """Whether the value of a match is not a secret.

    These values are harmless: a number (`probability of the token: 0.5312`), a word of a message (`training.token: unknown
    setting`), a value that is already redacted, and a word after `basic` that does not encode `user:password`.
    """
    value, before = match["value"], match[0][: match.start("value") - match.start()]
    if match.re is RULES[3].pattern:
        return all(":" not in inner for inner in _decoded(value)[:1])
    if "quote" not in match.re.groupindex:
        return False
    number = len(value) < MIN_LENGTH and re.fullmatch(r"[\d.,:%e+-]+", value)
    word = value.isalpha() and before.endswith(": ")
    return bool(number or word or value.startswith(HIDDEN))


# --- encodings


def unescaped(text: str) -> tuple[str, Any]:
    """Decode escapes; return the decoded text, and a function that maps its spans to spans of the original text."""
    return _replaced(ESCAPE, text, _character)


def _character(match: "re.Match[str]") -> str:
    kind, value = match.lastgroup, match[match.lastgroup] if match.lastgroup else ""
    if kind is None:  # a zero byte, as in UTF-16, or a color
        return ""
    if kind in ("plain", "name"):
        return NAMED.get(value, value)
    code = int(value, {"octal": 8, "number": 10}.get(kind, 16))
    return chr(code) if code < 0x110000 else "?"


def _replaced(pattern: "re.Pattern[str]", text: str, make: Any) -> tuple[str, Any]:
    """Replace matches with `make(match)`; return the new text, and a function that maps its spans to the original text."""
    parts: list[str] = []
    views, sources = [0], [0]  # corresponding positions; text between them is equal
    length = at = 0
    for match in pattern.finditer(text):
        replacement = make(match)
        length += match.start() - at
        views += [length, length + len(replacement)]
        sources += [match.start(), match.end()]
        parts += [text[at : match.start()], replacement]
        length, at = length + len(replacement), match.end()

    def source(start: int, end: int) -> tuple[int, int]:
        first = bisect_right(views, start) - 1
        last = bisect_left(views, end)
        last -= last == len(views) or views[last] != end
        return sources[first] + start - views[first], sources[last] + end - views[last]

    return "".join([*parts, text[at:]]), source


def _decoded(run: str) -> list[str]:
    """Decode a run of characters as base64, with each of four offsets, and as hexadecimal."""
    letters = run.rstrip("=").translate(URL_SAFE)
    decoded = []
    for offset in range(4):
        base64 = letters[offset:]
        base64 = base64[: len(base64) - (len(base64) % 4 == 1)]
        decoded.append(binascii.a2b_base64(base64 + "=" * (-len(base64) % 4)))
    decoded += map(bytes.fromhex, re.findall(r"(?:[0-9A-Fa-f]{2}){12,}", run))
    return [content.decode("latin-1") for content in decoded]


# --- records


def clean(value: Any) -> Any:
    """Redact secrets in a JSON record, except in labels: predictions must have the labels of the data."""
    return _clean(value, known_secrets())


def _clean(value: Any, known: tuple[Known, ...]) -> Any:
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, Mapping):
        return {redact(key, known) if isinstance(key, str) else key: _field(key, inner, known) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner, known) for inner in value]
    return value


def _field(name: Any, value: Any, known: tuple[Known, ...]) -> Any:
    if name in LABELS:
        return value
    if isinstance(name, str) and isinstance(value, str) and value and NAMES.match(name):
        return HIDDEN
    return _clean(value, known)

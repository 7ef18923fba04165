"""Tokens, keys and passwords are neither printed nor written: what is one is found here, and replaced by `***`.

The values that this machine keeps secret (the hub's token, environment variables that are named like secrets) are known to the
letter; the rest goes by its shape: tokens of well-known services, names and passwords in addresses, and words that are said to be
a token. `redact` is applied by those who write: `console`, the writers of records, and, while a command runs, standard output,
standard error and the log records of every library.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TextIO

from nlp_transfer.system import open_streams
from nlp_transfer.terminal import guard_messages

HIDDEN = "***"
NAMED_LIKE_ONE = re.compile(r"(_|^)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
LEAST = 12  # characters of a secret known by its variable alone: shorter values are words that stand elsewhere as well
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
HEAD = 8  # characters by which a value is recognised that a message cut short

SHAPES = re.compile(
    r"""
    \b(?:
        (?:hf|api_org)_[A-Za-z0-9]{16,}                               # Hugging Face
      | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_[A-Za-z0-9_]{20,}     # GitHub
      | glpat-[\w-]{16,}                                              # GitLab
      | sk-[\w-]{20,} | AIza[\w-]{30,} | ya29\.[\w-]{20,}             # OpenAI and the like, Google
      | (?:AKIA|ASIA)[A-Z0-9]{16}                                     # AWS
      | xox[abeoprs]-[\w-]{10,}                                       # Slack
      | pypi-[\w-]{40,}                                               # PyPI
      | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+                            # JSON web tokens
    )
    # the same, cut short by a message
    | \b(?:hf_|api_org_|gh[pousr]_|github_pat_|glpat-|sk-|AIza|xox[abeoprs]-|pypi-AgEI)[\w-]{6,}(?:\.\.\.|…)[\w-]*
    """,
    re.VERBOSE,
)
KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# One slash is enough: taken for a path, an address loses the other.
IN_ADDRESS = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]+://?)[^\s/?#'\"<>@]+(?:@[^\s/?#'\"<>@]+)*@", re.IGNORECASE)
IN_QUERY = re.compile(
    r"(?P<name>[?&](?:[\w.-]*(?:token|secret|password|signature|credential|api[_-]?key)|sig|key)=)[^\s&'\"<>#]+", re.IGNORECASE
)
BEARER = re.compile(r"(?P<name>\b(?:bearer|authorization:?)\s+)(?!bearer)[\w.~+/=-]{16,}", re.IGNORECASE)
SECRET_WORD = r"(?:(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!bos_)(?<!eos_)(?<!mask_)token|secret|passw(?:or)?d|api[_-]?key)"
# `token: abc`, `"hf_token": "abc"`, `password=abc`, `--token abc`.
SAID = re.compile(
    rf"(?P<name>(?<!\w)[\w.-]*{SECRET_WORD}['\"]?\s*[:=]\s*|--[\w.-]*{SECRET_WORD}\s+)(?P<quote>['\"]?)"
    r"(?P<value>[^\s'\",;{}()<>\[\]]{6,})",
    re.IGNORECASE,
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


def redact(text: str) -> str:
    """The text without what is secret in it."""
    for value in _known():
        if value[:HEAD] in text:
            text = _without(text, value)
    if "PRIVATE KEY" in text:
        text = KEY_BLOCK.sub(HIDDEN, text)
    if ":/" in text and "@" in text:
        text = IN_ADDRESS.sub(rf"\g<scheme>{HIDDEN}@", text)
    if "=" in text:
        text = IN_QUERY.sub(rf"\g<name>{HIDDEN}", text)
    text = SHAPES.sub(HIDDEN, text)
    text = BEARER.sub(rf"\g<name>{HIDDEN}", text)
    return SAID.sub(_said, text)


def find_secret(text: str) -> int | None:
    """Where the first secret stands that is known to the letter or by the shape of its token; None where there is none.

    Words that are merely said to be a token do not count: a vocabulary is full of them.
    """
    starts = [text.find(value) for value in _known()]
    starts += [found.start() for pattern in (SHAPES, KEY_BLOCK) for found in pattern.finditer(text)][:1]
    return min((start for start in starts if start >= 0), default=None)


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


def _said(found: "re.Match[str]") -> str:
    """Hides a value that was said to be a secret, unless it is a number (`of the next token: 0.5312`), the next word of a
    message (`training.token: unknown setting`), or hidden already."""
    value, quoted = found["value"], bool(found["quote"])
    number = len(value) < LEAST and re.fullmatch(r"[\d.,:%e+-]+", value)
    word = value.isalpha() and not quoted and found["name"].endswith(": ")
    return found[0] if number or word or value.startswith(HIDDEN) else f"{found['name']}{found['quote']}{HIDDEN}"


def _without(text: str, value: str) -> str:
    """Hides a value, also where a message shows its beginning and `...`, and perhaps its end."""
    text = text.replace(value, HIDDEN)
    parts, rest = [], text
    while (at := rest.find(value[:HEAD])) >= 0:
        length = next((n for n, (a, b) in enumerate(zip(rest[at:], value, strict=False)) if a != b), len(rest) - at)
        after = rest[at + length :]
        cut = next((mark for mark in ("...", "…") if after.startswith(mark)), None)
        parts.append(rest[:at] + (HIDDEN if cut else rest[at : at + length]))
        rest = after
        if cut:
            rest = rest.removeprefix(cut)
            end = next((n for n in range(len(value), 3, -1) if rest.startswith(value[-n:])), 0)
            rest = rest[end:]
    return "".join([*parts, rest])


def _known() -> tuple[str, ...]:
    """The values that are secret on this machine, the longest first: one may begin as another does."""
    named = [(name, value) for name, value in os.environ.items() if NAMED_LIKE_ONE.search(name) or name in HUB_TOKENS]
    found = [value.strip() for name, value in named if _may_be_secret(name, value.strip())]
    files = [place for place in _token_files() if os.path.isfile(place)]
    for place in files:
        found += _in_file(place, place.stat().st_mtime_ns)
    return _longest_first(tuple(found))


def _may_be_secret(name: str, value: str) -> bool:
    """Whether the value of a variable named like a secret is one: a path to a key is none, nor is a number or an address."""
    if name in HUB_TOKENS:
        return len(value) >= HEAD
    return len(value) >= LEAST and not value.startswith(("/", "./", "~")) and not value.isdigit() and "://" not in value


@lru_cache(maxsize=8)
def _longest_first(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(values), key=lambda value: -len(value)))


def _token_files() -> Iterable[Path]:
    """Where huggingface_hub keeps the token of a login. Named here again, since importing it takes long."""
    expand = os.path.expanduser  # which raises nothing where there is no home folder
    home = expand(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    yield Path(expand(os.environ.get("HF_TOKEN_PATH") or Path(home, "token")))
    yield Path(expand(os.environ.get("HF_STORED_TOKENS_PATH") or Path(home, "stored_tokens")))


@cache
def _in_file(place: Path, changed: int) -> list[str]:
    """The tokens in a file that is one, or that has lines `hf_token = ...`."""
    try:
        lines = place.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    values = [line.rpartition("=")[2].strip() for line in lines if not line.startswith("[")]
    return [value for value in values if len(value) >= HEAD]


class Redacting:
    """A text stream that hides secrets in what is written through it, and is in all else the stream below."""

    def __init__(self, below: TextIO) -> None:
        self.below = below

    def write(self, text: str) -> int:
        return self.below.write(redact(text) if isinstance(text, str) else text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def guard_output() -> None:
    """From now on nothing secret is printed by this process: not by its threads, warnings, other libraries, or a traceback."""
    open_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Redacting):
            setattr(sys, name, Redacting(stream))  # what is written to `buffer` goes past it: bytes are no messages
    before = logging.getLogRecordFactory()
    if not getattr(before, "redacts", False):
        logging.setLogRecordFactory(_redacting(before))
    guard_messages()


def _redacting(make: Any) -> Any:
    """Log records without secrets: a handler may hold a stream that was there before, or write to a file."""

    def record(*arguments: Any, **fields: Any) -> logging.LogRecord:
        found: logging.LogRecord = make(*arguments, **fields)
        try:
            text = found.getMessage()
        except Exception:  # its arguments do not fit: logging itself complains about that
            return found
        if (hidden := redact(text)) != text:
            found.msg, found.args = hidden, None
        if found.exc_info and found.exc_info[0] is not None:
            found.exc_text = redact(logging.Formatter().formatException(found.exc_info))
        return found

    record.redacts = True  # type: ignore[attr-defined]
    return record

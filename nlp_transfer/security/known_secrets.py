"""Secrets of this machine: saved hub tokens, and environment variables with names such as API_KEY."""

import binascii
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

SECRET_NAME = re.compile(r"(_|^)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
MIN_LENGTH = 12  # shorter values may be common words
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
PREFIX_LENGTH = 8  # characters that identify a truncated value in a message


class Known:
    """A known secret, and its forms in other encodings (Latin-1, hexadecimal, base64)."""

    def __init__(self, value: str) -> None:
        self.value = value
        data = value.encode("utf-8", "surrogateescape")
        forms = {value, value.replace(" ", "+"), "".join(value.split()), data.decode("latin-1"), data.hex(), data.hex().upper()}
        with suppress(UnicodeEncodeError):  # the form on a stream with Latin-1 encoding
            forms.add(value.encode("latin-1").decode("utf-8", "surrogateescape"))
        for offset in range(3):  # in base64, three bytes are four characters
            encoded = binascii.b2a_base64(bytes(offset) + data, newline=False).decode().rstrip("=")
            inner = encoded[(0, 2, 3)[offset] : len(encoded) - ((offset + len(data)) % 3 != 0)]  # only depends on the value
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
        self.forms = sorted(forms, key=len, reverse=True)

    def spans(self, text: str, complete: bool = False) -> Iterator[tuple[int, int]]:
        """Yield the spans of all forms in the text; unless `complete`, also those of truncated values."""
        for form in self.forms:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + len(form))
        if not complete:
            yield from self._truncated(text)

    def _truncated(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the spans of a prefix of the value, followed by `...` and possibly a suffix of the value."""
        value, at = self.value, text.find(self.value[:PREFIX_LENGTH])
        while at >= 0:
            end = at + next((n for n, (a, b) in enumerate(zip(text[at:], value, strict=False)) if a != b), len(value))
            if mark := next((mark for mark in ("...", "…") if text.startswith(mark, end)), None):
                end += len(mark)
                end += next((n for n in range(len(value), 3, -1) if text.startswith(value[-n:], end)), 0)
                yield at, end
            at = text.find(value[:PREFIX_LENGTH], max(end, at + 1))

    def unfinished(self, text: str, least: int) -> int | None:
        """Return the start of an incomplete form with at least `least` characters at the end of the text, or None."""
        for form in self.forms:
            at = text.find(form[:least], max(0, len(text) - len(form) + 1))
            while at >= 0:
                if form.startswith(text[at:]):
                    return at
                at = text.find(form[:least], at + 1)
        return None


def known_secrets() -> tuple[Known, ...]:
    """Return the secrets of this machine, longest first, since one may be a prefix of another."""
    values = [text for name, value in os.environ.items() if _is_name(name) and _may_be_secret(name, text := value.strip())]
    for file in _token_files():
        if os.path.isfile(file):
            values += _in_file(file, file.stat().st_mtime_ns)
    return _longest_first(tuple(values))


@cache
def _is_name(variable: str) -> bool:
    return variable in HUB_TOKENS or bool(SECRET_NAME.search(variable))


def _may_be_secret(name: str, value: str) -> bool:
    """Whether a variable's value may be a secret rather than a path, a number or a URL."""
    if name in HUB_TOKENS:
        return len(value) >= PREFIX_LENGTH
    return len(value) >= MIN_LENGTH and not value.startswith(("/", "./", "~")) and not value.isdigit() and "://" not in value


@lru_cache(maxsize=8)
def _longest_first(values: tuple[str, ...]) -> tuple[Known, ...]:
    return tuple(Known(value) for value in sorted(set(values), key=len, reverse=True))


def _token_files() -> Iterable[Path]:
    """Yield the token files of huggingface_hub. Importing that library is slow, so its constants are not used."""
    expand = os.path.expanduser  # unlike pathlib, raises no error without a home folder
    home = expand(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    yield Path(expand(os.environ.get("HF_TOKEN_PATH") or Path(home, "token")))
    yield Path(expand(os.environ.get("HF_STORED_TOKENS_PATH") or Path(home, "stored_tokens")))


@cache
def _in_file(file: Path, changed: int) -> list[str]:
    """Return the tokens in a file that contains a single token, or lines `hf_token = ...`.

    `changed`, the time of the last change, is part of the cache key.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    values = [line.rpartition("=")[2].strip() for line in lines if not line.startswith("[")]
    return [value for value in values if len(value) >= PREFIX_LENGTH]

"""The values that this machine keeps secret: the hub's token, and environment variables that are named like secrets."""

import binascii
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path

NAMED_LIKE_ONE = re.compile(r"(_|^)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
LEAST = 12  # characters of a secret known by its variable alone: shorter values are words that stand elsewhere as well
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN")
HEAD = 8  # characters by which a value is recognised that a message cut short


class Known:
    """A value that is secret on this machine, in every form in which it is looked for to the letter."""

    def __init__(self, value: str) -> None:
        self.value = value
        data = value.encode("utf-8", "surrogateescape")
        forms = {value, value.replace(" ", "+"), "".join(value.split()), data.decode("latin-1"), data.hex(), data.hex().upper()}
        with suppress(UnicodeEncodeError):  # where a stream's encoding is Latin-1
            forms.add(value.encode("latin-1").decode("utf-8", "surrogateescape"))
        for before in range(3):
            coded = binascii.b2a_base64(bytes(before) + data, newline=False).decode().rstrip("=")
            inner = coded[(0, 2, 3)[before] : len(coded) - ((before + len(data)) % 3 != 0)]  # letters that nothing else is in
            forms |= {inner, inner.replace("+", "-").replace("/", "_")}
        self.forms = sorted(forms, key=len, reverse=True)

    def spans(self, text: str, whole: bool = False) -> Iterator[tuple[int, int]]:
        """Where one of the forms stands; unless `whole`, also where a message has cut the value short."""
        for form in self.forms:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + len(form))
        if not whole:
            yield from self._cut(text)

    def _cut(self, text: str) -> Iterator[tuple[int, int]]:
        """Where a message shows the value's beginning and `...`, and perhaps its end."""
        value, at = self.value, text.find(self.value[:HEAD])
        while at >= 0:
            end = at + next((n for n, (a, b) in enumerate(zip(text[at:], value, strict=False)) if a != b), len(value))
            if mark := next((mark for mark in ("...", "…") if text.startswith(mark, end)), None):
                end += len(mark)
                end += next((n for n in range(len(value), 3, -1) if text.startswith(value[-n:], end)), 0)
                yield at, end
            at = text.find(value[:HEAD], max(end, at + 1))

    def begun(self, text: str, least: int) -> int | None:
        """Where at the end of the text one of the forms begins, `least` characters of it at least."""
        for form in self.forms:
            at = text.find(form[:least], max(0, len(text) - len(form) + 1))
            while at >= 0:
                if form.startswith(text[at:]):
                    return at
                at = text.find(form[:least], at + 1)
        return None


def known_secrets() -> tuple[Known, ...]:
    """The values that are secret on this machine, the longest first: one may begin as another does."""
    found = [text for name, value in os.environ.items() if _is_name(name) and _may_be_secret(name, text := value.strip())]
    for place in _token_files():
        if os.path.isfile(place):
            found += _in_file(place, place.stat().st_mtime_ns)
    return _longest_first(tuple(found))


@cache
def _is_name(variable: str) -> bool:
    return variable in HUB_TOKENS or bool(NAMED_LIKE_ONE.search(variable))


def _may_be_secret(name: str, value: str) -> bool:
    """Whether the value of a variable named like a secret is one: a path to a key is none, nor is a number or an address."""
    if name in HUB_TOKENS:
        return len(value) >= HEAD
    return len(value) >= LEAST and not value.startswith(("/", "./", "~")) and not value.isdigit() and "://" not in value


@lru_cache(maxsize=8)
def _longest_first(values: tuple[str, ...]) -> tuple[Known, ...]:
    return tuple(Known(value) for value in sorted(set(values), key=len, reverse=True))


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

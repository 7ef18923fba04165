"""Output with and without secrets, in any encoding, cut into writes anywhere and by any means."""

import base64
import io
import json
import random
import string
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from nlp_transfer.security.redaction import Redactor
from tests.helpers.fuzz.cases import ViolationError

WORDS = "step loss 0.1234 rate 45% | done\n \r a/b.csv c:\\x café 你好 … the model [1] {} \x1b[32mgreen\x1b[0m i = 3, \\n".split(
    " "
)
LETTERS = string.ascii_letters + string.digits
TRACES = 10  # letters in a row of a token, from which on it counts as printed


def secret_of(rng: random.Random, known: str) -> tuple[str, bool]:
    """A token, and whether the machine knows it."""
    if rng.random() < 0.5:
        return known, True
    kind, length = rng.choice([("hf_", 34), ("ghp_", 36), ("glpat-", 20), ("sk-", 40), ("AKIA", 16)])
    letters = string.ascii_uppercase + string.digits if kind == "AKIA" else LETTERS
    return kind + "".join(rng.choices(letters, k=length)), False


def partly(rng: random.Random, text: str, escape: Callable[[str], str]) -> str:
    share = rng.random()
    return "".join(escape(letter) if rng.random() < share else letter for letter in text)


def percent(rng: random.Random, text: str) -> str:
    """Some letters, and all that are not ASCII, as an address holds them."""
    share = rng.random()
    codes = ["".join(rng.choice([f"%{byte:02x}", f"%{byte:02X}"]) for byte in letter.encode()) for letter in text]
    return "".join(
        code if rng.random() < share or ord(letter) > 126 else letter for code, letter in zip(codes, text, strict=True)
    )


ENCODINGS: dict[str, Callable[[random.Random, str], str]] = {
    "plain": lambda rng, text: text,
    "percent": percent,
    "url": lambda rng, text: f"https://{rng.choice(['user:', ''])}{text}@host.org/x",
    "query": lambda rng, text: f"https://host.org/?n=1&token={quote(text)}",
    "json": lambda rng, text: json.dumps({"x": partly(rng, text, lambda c: c)}),
    "unicode": lambda rng, text: partly(rng, text, lambda c: f"\\u{ord(c):04x}"),
    "nested": lambda rng, text: json.dumps(partly(rng, text, lambda c: f"\\u{ord(c):04x}")),
    "repr": lambda rng, text: partly(rng, text, lambda c: f"\\x{ord(c):02x}"),
    "html": lambda rng, text: partly(rng, text, lambda c: f"&#{ord(c)};"),
    "basic": lambda rng, text: "Authorization: Basic " + base64.b64encode(f"user:{text}".encode()).decode(),
    "base64": lambda rng, text: base64.b64encode(f"{':' * rng.randrange(4)}{text}{'!' * rng.randrange(3)}".encode()).decode(),
    "urlsafe": lambda rng, text: base64.urlsafe_b64encode(f"{'>' * rng.randrange(4)}{text}".encode()).decode(),
    "hex": lambda rng, text: text.encode().hex(),
    "utf-16": lambda rng, text: text.encode(rng.choice(["utf-16-le", "utf-16-be"])).decode("utf-8", "surrogateescape"),
}


class Sink(io.RawIOBase):
    """What arrives at the descriptor, in order."""

    def __init__(self) -> None:
        self.arrived = b""
        self.buffer = self

    def write(self, data: Any) -> int:
        self.arrived += bytes(data)
        return len(data)


def write_in_parts(rng: random.Random, text: str) -> bytes:
    """What arrives of a text that is printed in parts, each by another means."""
    sink = Sink()
    layer = io.TextIOWrapper(Redactor(sink), encoding="utf-8", newline="\n", line_buffering=rng.random() < 0.5,
                             write_through=rng.random() < 0.5)  # type: ignore[arg-type] # fmt: skip
    data = text.encode("utf-8", "surrogateescape")
    while data:
        size = min(rng.choice([1, 2, 5, 17, 60, 1000]), len(data))
        part, data = data[:size], data[size:]
        how = rng.randrange(5)
        try:
            words = part.decode()
        except UnicodeDecodeError:
            how, words = 0, ""
        if how == 0:
            layer.flush()
            layer.buffer.write(part)
        elif how == 1:
            print(words, end="", file=layer, flush=rng.random() < 0.5)
        elif how == 2:
            layer.writelines(list(words))
        else:
            layer.write(words)
        if rng.random() < 0.2:
            layer.flush()
    layer.flush()
    layer.buffer.release()  # type: ignore[attr-defined]
    return sink.arrived


def check(seed: str, known: str) -> str:
    """Print one random text; gives its kind.

    Raises:
        ViolationError: a secret arrived, or something that is none did not.
    """
    rng = random.Random(seed)
    words = [" ".join(rng.choices(WORDS, k=rng.randrange(12))) for _ in range(2)]
    if rng.random() < 0.3:
        text = " ".join(words)
        if (arrived := write_in_parts(rng, text)) != text.encode():
            raise ViolationError(f"{seed}: harmless, {text!r} arrived as {arrived!r}")
        return "harmless"
    token, is_known = secret_of(rng, known)
    kinds = [*ENCODINGS, "wrapped"] if is_known else list(ENCODINGS)
    kind = rng.choice(kinds)
    if kind == "wrapped":
        place = rng.randrange(8, len(token))
        coded = f"{token[:place]}\n{' ' * rng.randrange(4)}{token[place:]}"
    else:
        coded = ENCODINGS[kind](rng, token)
    arrived = write_in_parts(rng, f"{words[0]} {coded} {words[1]}")
    traces = {coded[i : i + len(coded) * 2 // 3] for i in (0, len(coded) // 3)} | {
        token[i : i + TRACES] for i in range(len(token) - TRACES)
    }
    if found := [trace for trace in traces if trace.encode("utf-8", "surrogateescape") in arrived]:
        raise ViolationError(f"{seed}: {kind}, of {coded!r} {found[0]!r} arrived in {arrived!r}")
    outside = arrived.decode(errors="replace")
    if not outside.startswith(words[0]) or not outside.endswith(words[1]):
        raise ViolationError(f"{seed}: {kind}, {words!r} around {coded!r} arrived as {arrived!r}")
    return kind

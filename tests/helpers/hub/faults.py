"""Faults of the fake hub: listed, or random from a seed. The same seed and the same calls give the same faults."""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

BEFORE = ("500", "503", "429", "401", "409", "cut-request")
AFTER = ("500-after", "cut-answer", "drop", "changed")
OTHER = ("corrupt", "rival", "trickling-head")
KINDS = (*BEFORE, *AFTER, *OTHER)
Answer = tuple[int, Iterable[bytes], Mapping[str, str]]
"""Status, body (bytes, or an iterable of chunks), and headers. A body of bytes gets a Content-Length unless it has one."""


@dataclass
class Fault:
    """A fault of one of KINDS.

    - 500, 503, 429, 401, 409: the call is refused with this status. 401 also revokes the token.
    - 500-after: the call is carried out and answered with 500. drop: it is carried out and not answered.
    - cut-request: the connection breaks inside the request. cut-answer: it breaks inside the answer.
    - changed: the call is carried out, and `change` alters its answer.
    - trickling-head: the headers of the answer come byte by byte, without end.
    - corrupt: one bit of the content is flipped. rival: somebody else commits first.
    """

    kind: str
    call: str = ""
    """A pattern that `METHOD /path` must contain."""
    at: tuple[int, ...] | None = None
    """The numbers of the matching calls, from 1. None: all of them."""
    retry_after: int | str | None = None
    change: Callable[[int, bytes, dict[str, str]], Answer] | None = None
    seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def strikes(self, call: str) -> "Fault | None":
        if not re.search(self.call, call):
            return None
        self.seen += 1
        return self if self.at is None or self.seen in self.at else None


@dataclass
class RandomFaults:
    """Faults with probability `rate` for each call."""

    seed: int
    rate: float
    kinds: tuple[str, ...] = ("500", "503", "429", "cut-request", "500-after", "cut-answer", "drop")
    struck: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strikes(self, call: str) -> Fault | None:
        unlucky, kind = self.random.random() < self.rate, self.random.choice(self.kinds)
        if not unlucky:
            return None
        self.struck.append(f"{kind} {call}")
        return Fault(kind, retry_after=1 if kind == "429" else None)

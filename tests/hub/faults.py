"""How calls fail: by a list, or at random from a seed. The same seed and the same calls give the same faults."""

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

BEFORE = ("500", "503", "429", "401", "409", "cut-request")
AFTER = ("500-after", "cut-answer", "drop", "changed")
OTHER = ("slow", "corrupt", "rival", "trickling-head")
KINDS = (*BEFORE, *AFTER, *OTHER)
Answer = tuple[int, Iterable[bytes], Mapping[str, str]]
"""Status, body (in pieces, or whole), and headers. A body that is whole gets the header Content-Length unless it has one."""


@dataclass
class Fault:
    """One of KINDS, at certain calls.

    - 500, 503, 429, 401, 409: this answer, and nothing is done. After 401 the token is not known any more.
    - 500-after: all is done, and the answer is 500. drop: all is done, and there is no answer.
    - cut-request: the connection ends in the middle of what is sent; cut-answer: of what is answered.
    - changed: all is done, and `change` makes another answer of the right one.
    - trickling-head: the answer's headers come byte by byte, and do not end.
    - slow: the answer takes `seconds`. corrupt: one bit of what arrives is turned. rival: somebody else commits first.
    """

    kind: str
    call: str = ""
    """A pattern that `METHOD /path` must hold."""
    at: tuple[int, ...] | None = None
    """Which of the calls that match, from 1 on; without it all of them."""
    retry_after: int | str | None = None
    seconds: float = 0.0
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
    """Each call fails with probability `rate`, `most` times at most."""

    seed: int
    rate: float
    kinds: tuple[str, ...] = ("500", "503", "429", "cut-request", "500-after", "cut-answer", "drop")
    most: int = 1_000_000
    struck: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def strikes(self, call: str) -> Fault | None:
        unlucky, kind = self.random.random() < self.rate, self.random.choice(self.kinds)
        if not unlucky or len(self.struck) >= self.most:
            return None
        self.struck.append(f"{kind} {call}")
        return Fault(kind, retry_after=1 if kind == "429" else None, seconds=0.05)

"""Every request to a hub passes here: huggingface_hub, transformers, peft and datasets share one HTTP client.

Inside `asking` (or `guarded`) the client sends the token to the hub's own address alone, and nothing about this machine. It takes
no answer that would name a file outside the cache, fill the memory, or never end, and none in an unknown form (`hub_answers`).
Outside of them the client is as it was, so that other code of the same process is not affected; a client factory that was set
before goes on making the clients.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from huggingface_hub import close_session, constants, set_client_factory
from huggingface_hub.utils import _http, httpx

from nlp_transfer.hub.responses import NAME, fault, shape_of
from nlp_transfer.utils.errors import UserError

PATIENCE = 120.0  # seconds for a connection, and between two pieces of an answer
ANSWER = 300.0  # seconds until an answer begins, besides those that sending takes
WINDOW, SLOWEST = 60.0, 1000  # within so many seconds an answer must bring so many bytes a second
MOST_IN_MEMORY = 32 * 2**20  # bytes of an answer that is not a download
MOST_UNANNOUNCED = 2**30  # bytes of a download without a Content-Length
MOST_REQUESTS, MOST_DOWNLOADS = 10_000, 50  # of one address in one operation
LONGEST_WAIT = 300  # seconds that a hub may ask to wait before the next try
WAITS = ("Retry-After", "RateLimit")
ADVICE = "check HF_ENDPOINT (the hub's address), or try again later"
CALL = "nlp_transfer"  # the key under which a request carries its _Call
AGENT = f"nlp_transfer/{version('nlp_transfer')}; hf_hub/{version('huggingface_hub')}"
Send = Callable[..., Any]


class HubError(UserError):
    """A hub did not answer, or its answer was refused."""


class RefusedError(HubError):
    """An answer that no hub of good will gives."""


@dataclass
class Operation:
    """What a command wants of the hub, and what was asked and answered so far."""

    what: str
    counts: Counter[str] = field(default_factory=Counter)
    last: str = "nothing"
    """The last answer."""
    refused: RefusedError | None = None

    def refuse(self, request: Any, reason: str) -> RefusedError:
        """The error for an answer. It is remembered, since some libraries go on after any error."""
        self.refused = RefusedError(
            f"{self.what}: the answer of {constants.ENDPOINT} to {_shown(request)} was refused: {reason}; {ADVICE}"
        )
        return self.refused

    def count(self, request: Any, stream: bool) -> None:
        """Raises a HubError where a hub leads in circles: pages without end, or downloads that break off each time."""
        address = request.url.copy_with(query=None)
        limits = {f"{request.method} {address}": MOST_REQUESTS} | ({f"download {request.url}": MOST_DOWNLOADS} if stream else {})
        for key, most in limits.items():
            self.counts[key] += 1
            if self.counts[key] > most:
                raise self.refuse(request, f"it was asked {most:,} times, and there is no end")


@dataclass
class _Call:
    """A request until its answer begins; redirects belong to it."""

    operation: Operation
    stream: bool
    timer: threading.Timer | None = None
    late: bool = False

    def start(self, seconds: float) -> None:
        self.stop()
        self.timer = threading.Timer(seconds, self._end)
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _end(self) -> None:
        self.late = True
        close_session()  # what waits for the answer gets an error


class _Body(httpx.SyncByteStream):
    """The body of an answer, while it is neither too long nor too slow."""

    def __init__(self, body: Any, request: Any, call: _Call, most: int) -> None:
        self.body, self.request, self.call, self.most = body, request, call, most

    def __iter__(self) -> Iterator[bytes]:
        total = new = 0
        since = time.monotonic()
        for piece in self.body:
            total, new = total + len(piece), new + len(piece)
            if total > self.most:
                raise self.call.operation.refuse(self.request, f"it is longer than {self.most:,} bytes")
            if (seconds := time.monotonic() - since) >= WINDOW:
                if new < SLOWEST * seconds:
                    raise self.call.operation.refuse(
                        self.request,
                        f"it only trickles in ({new:,} bytes in {seconds:.0f} seconds); files that are whole stay in the cache",
                    )
                since, new = time.monotonic(), 0
            yield piece

    def close(self) -> None:
        self.body.close()


_operations: list[Operation] = []  # of all threads, since libraries make requests in threads of their own
_policies: list[Callable[..., Any]] = []
_before: dict[str, bool] = {}
_lock = threading.RLock()


@contextmanager
def guarded(what: str) -> Iterator[Operation]:
    """Guard all requests to hubs that are made within it.

    Args:
        what: what is wanted and of which repository, for messages.
    """
    operation = Operation(what)
    with _lock:
        _install()
        if not _operations:
            # hf_xet opens connections that this client does not see; telemetry asks the hub what to report.
            _before.update({name: getattr(constants, name) for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")})
            for name in _before:
                setattr(constants, name, True)
        _operations.append(operation)
    try:
        yield operation
    finally:
        with _lock:
            _operations.remove(operation)
            if not _operations:
                for name, value in _before.items():
                    setattr(constants, name, value)


@contextmanager
def asking(what: str, needed: bool = True) -> Iterator[None]:
    """Like `guarded`, and whatever a library raises over an answer becomes a HubError; other UserErrors pass.

    Args:
        what: what is wanted and of which repository, for messages.
        needed: False where no hub is asked, as for a local folder.

    Raises:
        HubError: the hub did not answer, or its answer was refused or could not be understood.
    """
    if not needed:
        yield
        return
    with guarded(what) as operation:
        try:
            yield
        except Exception as error:
            if operation.refused is not None and error is not operation.refused:
                raise operation.refused from error
            if isinstance(error, UserError):
                raise
            raise HubError(
                f"{what}: {constants.ENDPOINT} was asked, and {said(error)}; its last answer: {operation.last}; {ADVICE}"
            ) from error
        if operation.refused is not None:  # a library went on without the answer
            raise operation.refused


@contextmanager
def policy(send: Callable[..., Any]) -> Iterator[None]:
    """Within it each request is made by `send(plain_send, request, **settings)`."""
    _policies.append(send)
    try:
        yield
    finally:
        _policies.remove(send)


def said(error: BaseException) -> str:
    """An error in one short line."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__


def _install() -> None:
    """Let huggingface_hub's factory make guarded clients, also where a user has set one of his own."""
    make = _http._GLOBAL_CLIENT_FACTORY
    if getattr(make, "guards", False):
        return

    def factory() -> Any:
        return _guard(make())

    factory.guards = True  # type: ignore[attr-defined]
    set_client_factory(factory)


def _send(plain: Send, request: Any, **settings: Any) -> Any:
    return plain(request, **settings)


def _guard(client: Any) -> Any:
    plain = client.send

    def send(request: Any, *, stream: bool = False, **settings: Any) -> Any:
        if not _operations:
            return plain(request, stream=stream, **settings)
        call = _Call(_operations[-1], stream)
        call.operation.count(request, stream)
        request.extensions = {**request.extensions, CALL: call}
        try:
            made = (_policies[-1] if _policies else _send)(plain, request, stream=stream, **settings)
        except Exception as error:
            if call.late:
                raise call.operation.refuse(request, f"it has not begun after {ANSWER:.0f} seconds") from error
            raise
        finally:
            call.stop()
        shape = shape_of(request.method, request.url.path)
        if not stream and made.status_code < 400 and shape is not None:
            _check_document(call.operation, request, made, shape)
        return made

    client.send = send
    hooks = client.event_hooks
    client.event_hooks = {"request": [_check_request, *hooks["request"]], "response": [_check_answer, *hooks["response"]]}
    return client


def _check_request(request: Any) -> None:
    """Before each request, those that follow a redirect included."""
    call: _Call | None = request.extensions.get(CALL)
    if call is None:
        return
    if _origin(request.url) != _origin(httpx.URL(constants.ENDPOINT)):
        for name in ("Authorization", "Cookie"):
            request.headers.pop(name, None)
    request.headers["User-Agent"] = AGENT
    request.headers["Accept-Encoding"] = "identity"  # a few bytes of a packed answer can stand for gigabytes
    given = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions = {**request.extensions, "timeout": {kind: min(given.get(kind) or PATIENCE, PATIENCE) for kind in kinds}}
    length = request.headers.get("Content-Length", "0")
    call.start(ANSWER + int(length) / SLOWEST)


def _check_answer(response: Any) -> None:
    """Before anything reads the body.

    Raises:
        HubError: the answer is refused.
    """
    request, headers = response.request, response.headers
    call: _Call | None = request.extensions.get(CALL)
    if call is None:
        return
    call.stop()
    call.operation.last = f"{response.status_code} to {_shown(request)}, {headers.get('Content-Type', 'without a type')[:80]!r}"

    def refuse(reason: str) -> RefusedError:
        return call.operation.refuse(request, reason)

    for name, value in headers.items():
        if not value.replace("\t", "").isprintable():
            raise refuse(f"its header {name} holds control characters")
    if (packed := headers.get("Content-Encoding", "identity").lower()) not in ("identity", "aws-chunked"):
        raise refuse(f"it is packed ({packed[:40]!r}), which was not asked for")
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not NAME.fullmatch(commit):
        raise refuse(f"its header X-Repo-Commit is {commit[:80]!r}; allowed: a commit, since a folder is named by it")
    linked = "X-Linked-Etag" if headers.get("X-Linked-Etag") else "ETag"
    etag = headers.get(linked)
    if request.method == "HEAD" and etag is not None and not NAME.fullmatch(etag.removeprefix("W/").strip('"')):
        if response.status_code < 300 or linked != "ETag":
            raise refuse(f"its header {linked} is {etag[:80]!r}; allowed: a hash, since a file is named by it")
        del headers["ETag"]
    asked = request.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
    if response.status_code == 206 and asked and not headers.get("Content-Range", "").startswith(f"bytes {asked}-"):
        raise refuse(f"it is another part of the file than was asked for ({headers.get('Content-Range', '')[:80]!r})")
    for name in WAITS:  # digits that are too many for a wait; then the library's own waits apply
        if any(len(digits) > 9 or int(digits) > LONGEST_WAIT for digits in _numbers(headers.get(name, ""))) and not _policies:
            del headers[name]
    download = call.stream and response.status_code in (200, 206)
    length = headers.get("Content-Length", "")
    most = MOST_IN_MEMORY if not download else int(length) if length.isdecimal() and len(length) < 20 else MOST_UNANNOUNCED
    response.stream = _Body(response.stream, request, call, most)


def _numbers(text: str) -> list[str]:
    return "".join(sign if sign in "0123456789" else " " for sign in text).split()


def _check_document(operation: Operation, request: Any, response: Any, shape: Any) -> None:
    try:
        document = response.json()
    except (ValueError, RecursionError) as error:
        raise operation.refuse(request, f"it is no JSON ({said(error)[:80]})") from error
    if found := fault(shape, document):
        raise operation.refuse(request, found)


def _origin(address: Any) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _shown(request: Any) -> str:
    """Without what may be secret in an address: a user, a signature."""
    address = request.url
    return f"{request.method} {address.scheme}://{address.host}{f':{address.port}' if address.port else ''}{address.path[:200]}"

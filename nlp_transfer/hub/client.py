"""The HTTP client for model hubs, with guards against hostile or broken responses.

huggingface_hub, transformers, peft and datasets share one HTTP client. Within `asking` or `guarded`, it sends the token only to
the address in `HF_ENDPOINT`, and sends no information about this machine. It refuses responses that name a file outside the
cache, fill the memory, do not end, or are malformed (see `responses`). Outside these contexts the client is unchanged, so other
code in the process is not affected. If the user has set a client factory, it still creates the clients.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from huggingface_hub import close_session, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http, httpx

from nlp_transfer.hub.responses import NAME, find_fault, shape_of
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import UserError, first_line

READ_TIMEOUT = 120.0  # seconds to connect, and to wait for the next chunk of a response
RESPONSE_TIMEOUT = 300.0  # maximum seconds until a response begins, in addition to the time for sending the request
SPEED_INTERVAL, MIN_SPEED = 60.0, 1000  # seconds between checks of the download speed; minimum bytes per second
MAX_IN_MEMORY = 32 * 2**20  # maximum bytes of a response that is not a download
MAX_WITHOUT_LENGTH = 2**30  # maximum bytes of a download without a Content-Length
MAX_REQUESTS, MAX_DOWNLOADS = 10_000, 50  # maximum per address, in one operation
MAX_WAIT = 300  # maximum seconds that a hub may ask a client to wait before a retry
WAIT_HEADERS = ("Retry-After", "RateLimit")
ADVICE = "check HF_ENDPOINT (the hub's address), or try again later"
ADVICE_FOR_STATUS = {
    401: "the hub does not accept the token; create a new one with `hf auth login`, or set HF_TOKEN",
    403: "the token does not have the right to do this; use a token that has it, or ask for access",
    412: "somebody else has committed in the meantime",
}
CALL = "nlp_transfer"  # the key of the _Call in a request's extensions
USER_AGENT = f"nlp_transfer/{version('nlp_transfer')}; hf_hub/{version('huggingface_hub')}"


class HubError(UserError):
    """A hub did not respond, or its response was refused."""


class RefusedError(HubError):
    """A response that no well-behaved hub sends."""


@dataclass
class Operation:
    """An operation on a hub: its purpose (for messages), the number of requests by address, and the last response."""

    purpose: str
    counts: Counter[str] = field(default_factory=Counter)
    last_response: str = "none"
    refused: RefusedError | None = None
    """The error for the last refused response, if there was one."""

    def refuse(self, request: Any, reason: str) -> RefusedError:
        """Create the error for a refused response, and record it, because some libraries continue after any error."""
        self.refused = RefusedError(
            f"{self.purpose}: the response of {constants.ENDPOINT} to {_describe(request)} was refused: {reason}; {ADVICE}"
        )
        return self.refused

    def count(self, request: Any, stream: bool) -> None:
        """Count a request.

        Raises:
            RefusedError: too many requests to one address. The reason may be an endless listing, or a download that always
                breaks off.
        """
        address = request.url.copy_with(query=None)
        limits = {f"{request.method} {address}": MAX_REQUESTS} | ({f"download {request.url}": MAX_DOWNLOADS} if stream else {})
        for key, limit in limits.items():
            self.counts[key] += 1
            if self.counts[key] > limit:
                raise self.refuse(request, f"after {limit:,} requests there is no end")


@dataclass
class _Call:
    """A request and its redirects, with a timer that runs until the response begins."""

    operation: Operation
    stream: bool
    timer: threading.Timer | None = None
    is_late: bool = False

    def start_timer(self, seconds: float) -> None:
        """Start a timer that ends the request."""
        self.stop_timer()
        self.timer = threading.Timer(seconds, self._end)
        self.timer.daemon = True
        self.timer.start()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def _end(self) -> None:
        self.is_late = True
        close_session()  # raises an error in the thread that waits for the response


class _Body(httpx.SyncByteStream):
    """The body of a response. Reading raises a RefusedError if the body is too long or too slow."""

    def __init__(self, body: Any, request: Any, call: _Call, max_bytes: int) -> None:
        self.body, self.request, self.call, self.max_bytes = body, request, call, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        total = recent = 0
        since = time.monotonic()
        for chunk in self.body:
            total, recent = total + len(chunk), recent + len(chunk)
            if total > self.max_bytes:
                raise self.call.operation.refuse(self.request, f"it is longer than {self.max_bytes:,} bytes")
            if (seconds := time.monotonic() - since) >= SPEED_INTERVAL:
                if recent < MIN_SPEED * seconds:
                    raise self.call.operation.refuse(
                        self.request, f"it is too slow ({recent:,} bytes in {seconds:.0f} seconds); complete files stay cached"
                    )
                since, recent = time.monotonic(), 0
            yield chunk

    def close(self) -> None:
        self.body.close()


_operations: list[Operation] = []  # of all threads, because libraries start threads for their requests
_saved_constants: dict[str, bool] = {}
_lock = threading.RLock()


@contextmanager
def guarded(purpose: str) -> Iterator[Operation]:
    """Guard all requests to hubs within the context.

    Args:
        purpose: the action and the repository, for messages.
    """
    operation = Operation(purpose)
    with _lock:
        _install()
        if not _operations:
            # hf_xet opens connections outside this client; telemetry asks the hub which variables to report.
            names = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY")
            _saved_constants.update({name: getattr(constants, name) for name in names})
            for name in names:
                setattr(constants, name, True)
        _operations.append(operation)
    try:
        yield operation
    finally:
        with _lock:
            _operations.remove(operation)
            if not _operations:
                for name, value in _saved_constants.items():
                    setattr(constants, name, value)


class _Retries(logging.Filter):
    """Replaces the two lines that huggingface_hub logs for every attempt by one line for all of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not (text := record.getMessage()).startswith("Retrying in") and "thrown while requesting" not in text:
            return True
        say_once(f"{constants.ENDPOINT} cannot be reached; trying again for half a minute")
        return False


@contextmanager
def _one_line_for_retries() -> Iterator[None]:
    logger, retries = logging.getLogger(_http.__name__), _Retries()
    logger.addFilter(retries)
    try:
        yield
    finally:
        logger.removeFilter(retries)


@contextmanager
def asking(purpose: str) -> Iterator[None]:
    """Guard all requests to hubs within the context, and convert all errors except UserErrors to HubErrors.

    Args:
        purpose: the action and the repository, for messages.

    Raises:
        HubError: the hub did not respond, or its response was refused or not understood.
    """
    with guarded(purpose) as operation, _one_line_for_retries():
        try:
            yield
        except Exception as error:
            if operation.refused is not None and error is not operation.refused:
                raise operation.refused from error
            if isinstance(error, UserError):
                raise
            raise HubError(_explain(operation, error)) from error
        if operation.refused is not None:  # a library has continued without the response
            raise operation.refused


def _explain(operation: Operation, error: BaseException) -> str:
    """Return the message for an error raised by a library."""
    cause: Any = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__  # errors of uploads are wrapped
    if cause is None:
        return (
            f"{operation.purpose}: a request to {constants.ENDPOINT} failed ({type(error).__name__}: {first_line(error)[:300]}); "
            f"last response: {operation.last_response}; {ADVICE}"
        )
    status, reason = cause.response.status_code, cause.server_message or cause.response.reason_phrase or "no reason"
    call, advice = _describe(cause.response.request), ADVICE_FOR_STATUS.get(status, ADVICE)
    return f"{operation.purpose}: the response to {call} is {status} ({' '.join(reason.split())[:300]}); {advice}"


def _install() -> None:
    """Wrap the client factory of huggingface_hub, or the one that the user has set, so that it creates guarded clients."""
    make_client = _http._GLOBAL_CLIENT_FACTORY
    if getattr(make_client, "guards", False):
        return

    def factory() -> Any:
        return _guard(make_client())

    factory.guards = True  # type: ignore[attr-defined]
    set_client_factory(factory)


def _guard(client: Any) -> Any:
    """Add the checks of requests and responses to a client."""
    send_unguarded = client.send

    def send(request: Any, *, stream: bool = False, **settings: Any) -> Any:
        if not _operations:
            return send_unguarded(request, stream=stream, **settings)
        call = _Call(_operations[-1], stream)
        call.operation.count(request, stream)
        request.extensions = {**request.extensions, CALL: call}
        try:
            response = send_unguarded(request, stream=stream, **settings)
        except Exception as error:
            if call.is_late:
                raise call.operation.refuse(request, f"it has not begun after {RESPONSE_TIMEOUT:.0f} seconds") from error
            raise
        finally:
            call.stop_timer()
        shape = shape_of(request.method, request.url.path)
        if not stream and response.status_code < 400 and shape is not None:
            _check_document(call.operation, request, response, shape)
        return response

    client.send = send
    hooks = client.event_hooks
    client.event_hooks = {"request": [_check_request, *hooks["request"]], "response": [_check_response, *hooks["response"]]}
    return client


def _check_request(request: Any) -> None:
    """Prepare a request or redirect before it is sent: remove the token unless it goes to the hub, and limit the waiting time."""
    call: _Call | None = request.extensions.get(CALL)
    if call is None:
        return
    if _origin(request.url) != _origin(httpx.URL(constants.ENDPOINT)):
        for name in ("Authorization", "Cookie"):
            request.headers.pop(name, None)
    request.headers["User-Agent"] = USER_AGENT
    request.headers["Accept-Encoding"] = "identity"  # a small compressed response can expand to gigabytes
    timeouts = request.extensions.get("timeout") or {}
    limited = {kind: min(timeouts.get(kind) or READ_TIMEOUT, READ_TIMEOUT) for kind in ("connect", "read", "write", "pool")}
    request.extensions = {**request.extensions, "timeout": limited}
    length = request.headers.get("Content-Length", "0")
    call.start_timer(RESPONSE_TIMEOUT + int(length) / MIN_SPEED)


def _check_response(response: Any) -> None:
    """Check the headers of a response, and limit the length of its body.

    Raises:
        RefusedError: a header is invalid.
    """
    request, headers = response.request, response.headers
    call: _Call | None = request.extensions.get(CALL)
    if call is None:
        return
    call.stop_timer()
    content_type = headers.get("Content-Type", "without a type")[:80]
    call.operation.last_response = f"{response.status_code} to {_describe(request)}, {content_type!r}"

    def refuse(reason: str) -> RefusedError:
        return call.operation.refuse(request, reason)

    for name, value in headers.items():
        if not value.replace("\t", "").isprintable():
            raise refuse(f"its header {name} contains control characters")
    if (encoding := headers.get("Content-Encoding", "identity").lower()) not in ("identity", "aws-chunked"):
        raise refuse(f"it is compressed ({encoding[:40]!r}), which was not requested")
    commit = headers.get("X-Repo-Commit")
    if commit is not None and not NAME.fullmatch(commit):
        raise refuse(f"its header X-Repo-Commit is {commit[:80]!r}; allowed: a commit, because it names a folder of the cache")
    etag_header = "X-Linked-Etag" if headers.get("X-Linked-Etag") else "ETag"
    etag = headers.get(etag_header)
    if request.method == "HEAD" and etag is not None and not NAME.fullmatch(etag.removeprefix("W/").strip('"')):
        if response.status_code < 300 or etag_header != "ETag":
            raise refuse(f"its header {etag_header} is {etag[:80]!r}; allowed: a hash, because it names a file of the cache")
        del headers["ETag"]
    start = request.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
    if response.status_code == 206 and start and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise refuse(f"it is not the requested section of the file ({headers.get('Content-Range', '')[:80]!r})")
    for name in WAIT_HEADERS:  # without the header, huggingface_hub uses its default wait
        if any(len(digits) > 9 or int(digits) > MAX_WAIT for digits in re.findall("[0-9]+", headers.get(name, ""))):
            del headers[name]
    is_download = call.stream and response.status_code in (200, 206)
    length = headers.get("Content-Length", "")
    download_bytes = int(length) if length.isdecimal() and len(length) < 20 else MAX_WITHOUT_LENGTH
    max_bytes = download_bytes if is_download else MAX_IN_MEMORY
    response.stream = _Body(response.stream, request, call, max_bytes)


def _check_document(operation: Operation, request: Any, response: Any, shape: Any) -> None:
    try:
        document = response.json()
    except (ValueError, RecursionError) as error:
        raise operation.refuse(request, f"it is not valid JSON ({first_line(error)[:80]})") from error
    if fault := find_fault(shape, document):
        raise operation.refuse(request, fault)


def _origin(address: Any) -> tuple[str, str, int | None]:
    return address.scheme, address.host, address.port


def _describe(request: Any) -> str:
    """Return the method and the address of a request, without user names and signatures."""
    address = request.url
    port = f":{address.port}" if address.port else ""
    return f"{request.method} {address.scheme}://{address.host}{port}{address.path[:200]}"

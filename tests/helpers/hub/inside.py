"""The fake hub without sockets: thousands of requests per minute, and a record of the requests to other hosts."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session, constants, set_client_factory
from huggingface_hub.utils import _http, httpx

from tests.helpers.hub.client import TOKEN
from tests.helpers.hub.server import Handler
from tests.helpers.hub.store import Hub

ADDRESS, OTHER = "http://hub.test", "http://other.test"


class _Connection:
    def shutdown(self, _: int) -> None:
        pass


class _Rest(httpx.SyncByteStream):
    """A body that ends with an error if it is shorter than its Content-Length."""

    def __init__(self, body: bytes, announced: str | None) -> None:
        self.body = body[: int(announced)] if announced and announced.isdecimal() else body
        self.short = bool(announced and announced.isdecimal() and len(body) < int(announced))

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.body), 65_536):
            yield self.body[start : start + 65_536]
        if self.short:
            raise httpx.RemoteProtocolError("the connection ended before the body did")


class Inside(httpx.BaseTransport):
    """A transport to the handler of the fake hub. `elsewhere` holds the requests to other hosts."""

    def __init__(self, hub: Hub) -> None:
        self.handler = type("HandlerInside", (Handler,), {"hub": hub})
        self.elsewhere: list[Any] = []

    def handle_request(self, request: Any) -> Any:
        body = b"".join(request.stream)
        if f"{request.url.scheme}://{request.url.netloc.decode()}" != ADDRESS:
            self.elsewhere.append(request)
            return httpx.Response(200, headers={"Content-Type": "application/json"}, stream=_Rest(b"[]", "2"))
        headers = dict(request.headers) | {"Content-Length": str(len(body))}
        headers.pop("transfer-encoding", None)
        headers = {name.title(): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        handler: Any = self.handler.__new__(self.handler)
        handler.rfile = io.BytesIO(f"{request.method} {request.url.raw_path.decode()} HTTP/1.1\r\n{head}\r\n".encode() + body)
        handler.wfile, handler.connection, handler.client_address = io.BytesIO(), _Connection(), ("inside", 0)
        handler.handle_one_request()
        return self.answer(handler.wfile.getvalue(), request.method)

    def answer(self, sent: bytes, method: str) -> Any:
        head, _, body = sent.partition(b"\r\n\r\n")
        if not head:
            raise httpx.RemoteProtocolError("the hub ended the connection")
        first, *lines = head.split(b"\r\n")
        headers = [tuple(part.strip() for part in line.split(b":", 1)) for line in lines]
        if any(len(header) != 2 for header in headers):
            raise httpx.RemoteProtocolError("a header without a name")
        announced = next((value.decode("latin-1") for name, value in headers if name.lower() == b"content-length"), None)
        stream = _Rest(b"" if method == "HEAD" else body, None if method == "HEAD" else announced)
        return httpx.Response(int(first.split()[1]), headers=headers, stream=stream)


@contextmanager
def inside(cache: Path) -> Iterator[tuple[Hub, Inside]]:
    """A hub at ADDRESS that `ann` may write to with TOKEN. Its files are cached in `cache`."""
    hub = Hub()
    transport = Inside(hub)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", ADDRESS)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", ADDRESS + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-login"))
        patch.setenv("HF_TOKEN", TOKEN)
        before = _http._GLOBAL_CLIENT_FACTORY
        set_client_factory(lambda: httpx.Client(transport=transport, follow_redirects=True))
        hub.user(TOKEN, "ann", orgs={"lab": "write", "library": "read"})
        try:
            yield hub, transport
        finally:
            close_session()
            set_client_factory(before)

"""Run the server of a model until it is told to stop."""

import ipaddress
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import uvicorn

from nlp_transfer.inference.file_predictor import open_predictor
from nlp_transfer.serving.app import Limits, create_app
from nlp_transfer.serving.served_model import ServedModel
from nlp_transfer.utils.console import Level, say
from nlp_transfer.utils.errors import UserError
from nlp_transfer.utils.interrupts import SIGNALS

TOKEN = "NLP_TRANSFER_TOKEN"
SHORTEST_TOKEN = 16
DRAIN_SECONDS = 1.0  # in which requests that were sent before the signal are read
EXTRA_SECONDS = 5  # after the timeout of requests, for sending the last responses before the process ends


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the file with its token.

    Attributes:
        host: Name or address of an interface.
        port: Port; 0: any free one.
        token_file: File with the token. None: the environment variable `NLP_TRANSFER_TOKEN`, or no token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | None = None


def serve(address: Address, limits: Limits, model: str, settings: dict[str, Any], **loading: Any) -> None:
    """Serve a model until SIGINT or SIGTERM. Then every accepted request is finished, and new ones are refused.

    Args:
        model: A run folder, a model folder, an export or a hub id.
        settings: Task settings, which override the saved ones.
        loading: Further arguments of `open_predictor`.

    Raises:
        UserError: The model cannot be loaded, the address cannot be used, or the token is too short.
    """
    token = read_token(address.token_file)
    with _bound(address) as listener:
        served = ServedModel(open_predictor(model, settings, **loading), Path(model).resolve().name)
        # The first prediction takes longer than others, and shows that the model works.
        served.predict({name: ["a"] for name in served.inputs}, False)
        app = create_app(served, limits, token)
        listener.listen(2048)
        bound, port = listener.getsockname()[:2]
        if token is None and not ipaddress.ip_address(bound.partition("%")[0]).is_loopback:
            say(f"warning: {address.host} can be reached from other machines, and no token is required; set {TOKEN}")
        shown_host = f"[{address.host}]" if ":" in address.host else address.host
        say(f"serving {model} at http://{shown_host}:{port}; Ctrl-C or SIGTERM to stop", level=Level.QUIET)
        config = uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, server_header=False, ws="none", lifespan="on",
            timeout_graceful_shutdown=math.ceil(limits.seconds) + EXTRA_SECONDS,
        )  # fmt: skip
        with _ignored_signals():
            _Server(config).run(sockets=[listener])
    say(f"stopped; {app.state.answered():,} requests for predictions were answered")


class _Server(uvicorn.Server):
    """A server that reads what its clients have already sent before it closes their connections.

    uvicorn closes the connections between two requests at once, even if the next request has arrived but was not read. Here, new
    connections are refused first, and responses ask clients to close theirs.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish all requests, and close all connections."""
        for server in self.servers:
            server.close()
        app: Any = self.config.app
        app.state.draining = True
        deadline = anyio.current_time() + DRAIN_SECONDS
        while self.server_state.connections and anyio.current_time() < deadline:
            await anyio.sleep(0.05)
        await super().shutdown(sockets)


def read_token(file: Path | None) -> str | None:
    """Return the token that requests need, or None.

    Raises:
        UserError: The file cannot be read, or the token is too short or not ASCII.
    """
    place, token = TOKEN, os.environ.get(TOKEN)
    if file is not None:
        place = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{place}: cannot be read ({error}); allowed: a file with the token") from error
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{place}: found a token of {len(token)} characters; allowed: at least {SHORTEST_TOKEN} ASCII letters, digits and "
            'signs; to make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token


@contextmanager
def _bound(address: Address) -> Iterator[socket.socket]:
    """Reserve the address, before the model is loaded.

    Raises:
        UserError: The address is in use, or is not one of this machine.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host, --port: {address.host}:{address.port} cannot be used ({reason}); allowed: an address of this machine and a "
            "free port; --port 0 chooses one"
        ) from error
    with listener:
        yield listener


@contextmanager
def _ignored_signals() -> Iterator[None]:
    """Ignore the signals that uvicorn raises again after a clean shutdown, so that the process ends with status 0."""
    previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Middleware that limits the size of a request and the time for receiving it, counts responses, and hides failures."""

import time
import traceback
from collections.abc import Callable

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nlp_transfer.utils.console import say


class RequestGuard:
    """ASGI middleware.

    Args:
        app: The application.
        size: Largest size of a request in bytes; larger requests get status 413.
        seconds: Time in which a request must arrive; slower requests get status 408.
        observe: Called with the path, the status and the seconds of each response.
    """

    def __init__(self, app: ASGIApp, size: int, seconds: float, observe: Callable[[str, int, float], None]) -> None:
        self.app, self.size, self.seconds, self.observe = app, size, seconds, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, received, complete = time.perf_counter(), 0, 0, False

        async def receive_in_time() -> Message:
            nonlocal complete, received
            if complete:
                return await receive()
            try:
                with anyio.fail_after(max(0.0, start + self.seconds - time.perf_counter())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request was not received within {self.seconds:g} s") from None
            received += len(message.get("body", b""))
            if received > self.size:
                raise HTTPException(413, f"the request has more than {self.size:,} bytes, which is the limit")
            complete = not message.get("more_body", False)
            return message

        async def send_counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start" and scope["app"].state.draining:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self.app(scope, receive_in_time, send_counted)
        except Exception as error:
            # Only the place is printed: the message of an error may quote a text of a user.
            frames = "".join(traceback.format_tb(error.__traceback__)[-4:])
            say(f"warning: {type(error).__name__} while answering {scope['path']}:\n{frames}")
            if not status:
                failure = JSONResponse({"detail": "the server failed to predict this; its log says where"}, 500)
                await failure(scope, receive, send_counted)
        finally:
            self.observe(scope["path"], status, time.perf_counter() - start)

"""Calls to a hub that are made again: one policy for all of them, which says what it waits for.

huggingface_hub repeats some of its calls by itself and others not. Inside `one_try_each` each of its requests is sent once and
fails after PATIENCE seconds without progress; `again` makes it again.
"""

import random
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils import logging as hub_logging

from nlp_transfer.hub.client import PATIENCE, HubError, guarded, policy, said
from nlp_transfer.utils.console import console, say
from nlp_transfer.utils.errors import UserError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

TRIES = 6
FIRST, LONGEST = 1.0, 30.0  # seconds between two tries: doubled each time, up to the longest
ASKED = 300.0  # seconds that a hub may ask to wait for
BUSY = (408, 429)
RESET = re.compile(r"\br=0\b.*?\bt=(\d+)")  # of the header `RateLimit: "api";r=0;t=55`
sleep = time.sleep


class NoAnswerError(Exception):
    """A request without an answer, or with one that says to ask again. `wait`: seconds that the hub asked for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class GaveUpError(HubError):
    """No answer, however often the hub was asked."""


class HubAnswerError(HubError):
    """An answer that says no. `error` is what huggingface_hub made of it."""

    def __init__(self, message: str, error: HfHubHTTPError) -> None:
        super().__init__(message)
        self.error = error

    @property
    def status(self) -> int:
        response: Any = self.error.response
        return int(response.status_code)


def again(what: str, call: Callable[[], T], arrived: Callable[[], T | None] = lambda: None) -> T:
    """The result of `call`, made up to TRIES times.

    Args:
        what: the call, for messages.
        arrived: after a try without an answer, its result if the call was carried out all the same.

    Raises:
        GaveUpError: there was no answer, or none that can be understood.
        HubAnswerError: the hub said no.
        HubError: the hub's answer was refused.
    """
    outer = sys.exc_info()[1]
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            if answer := within(error, HfHubHTTPError, outer):
                raise HubAnswerError(_explain(what, answer), answer) from error
            if refused := within(error, UserError, outer):
                raise refused from error
            silence = within(error, NoAnswerError, outer)
            if silence is None and isinstance(error, OSError):  # offline mode, or a file that cannot be read
                raise UserError(f"{what}: {said(error)}") from error
            trouble = silence or NoAnswerError(f"the answer cannot be understood ({said(error)})")
        wait = _wait(attempt, trouble)
        if attempt == TRIES or wait > ASKED:
            break
        say(f"{what}: {trouble}; trying again in {wait:.0f} s ({attempt} of {TRIES - 1})")
        sleep(wait)
        if (found := arrived()) is not None:
            return found
    if (found := arrived()) is not None:
        return found
    asked = f"; it asks to wait for {trouble.wait:.0f} seconds" if trouble.wait and trouble.wait > ASKED else ""
    raise GaveUpError(f"{what}: {trouble}, {attempt} time{'s' if attempt > 1 else ''}{asked}; push again later")


def _wait(attempt: int, trouble: NoAnswerError) -> float:
    """Seconds; spread, so that those who were turned away together do not come back together."""
    spread = min(LONGEST, FIRST * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
    return spread if trouble.wait is None else trouble.wait + random.uniform(0.0, 1.0)


def within(error: BaseException | None, kind: type[E], outer: BaseException | None = None) -> E | None:
    """The error of a kind that another was raised from: huggingface_hub wraps what happens in its threads.

    Args:
        outer: an error that was being handled before, such as the one that a push is taken back for.
    """
    while error is not None and error is not outer and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error if isinstance(error, kind) and error is not outer else None


def _explain(what: str, error: HfHubHTTPError) -> str:
    response: Any = error.response
    status = response.status_code
    said = (error.server_message or response.headers.get("X-Error-Message") or response.reason_phrase or "").strip()
    if status == 401:
        return f"{what}: the hub does not accept the token (401: {said}); `hf auth login` gives a new one, or set HF_TOKEN"
    if status == 403:
        return f"{what}: the token has no right to do this (403: {said}); allowed: one that may write to the repository"
    return f"{what}: the hub refused ({status}: {said})"


@contextmanager
def one_try_each(what: str) -> Iterator[None]:
    """Within it huggingface_hub sends each request once, and is silent. Answers are guarded (`hub_client`).

    Args:
        what: what is wanted, for messages.
    """

    def once(send: Any, request: Any, **settings: Any) -> Any:
        request.extensions = dict(request.extensions) | {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), PATIENCE)}
        try:
            response = send(request, **settings)
        except (OSError, UserError):  # offline mode, a file that cannot be read, or an answer that was refused
            raise
        except Exception as error:
            if _is_transport(error):
                raise NoAnswerError(f"no answer from {request.url.host} ({_name(error)})") from error
            raise
        if response.status_code in BUSY or (response.status_code >= 500 and response.status_code != 501):
            raise NoAnswerError(f"{request.url.host} answered {response.status_code} {response.reason_phrase}", _asked(response))
        return response

    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        with guarded(what), policy(once), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logging.set_verbosity(level)


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Within it huggingface_hub shows progress on a terminal alone."""
    hide = not (console.is_terminal or are_progress_bars_disabled())
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _is_transport(error: Exception) -> bool:
    """Whether the client's own error says that a request or its answer did not get through."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _asked(response: Any) -> float | None:
    """Seconds that an answer asks to wait: `Retry-After` as a number, or the end of a window of its rate limit."""
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    limit = RESET.search(response.headers.get("RateLimit", "")) if response.status_code == 429 else None
    return float(limit[1]) if limit else None

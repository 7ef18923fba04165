"""The windows of a file, shared among processes and given back with their answers in the order of the file."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.utils.errors import UserError

AHEAD = 2  # windows for each process that are read, under way or answered, and not given back yet
# ("ready", *arguments of `read`), ("answer", answer), ("refused", message, problems), ("failed", traceback)
Reply = tuple[Any, ...]


class WorkerError(RuntimeError):
    """An error in another process that is nobody's input; the message holds its traceback."""


class Team(Protocol):
    """Processes, numbered from 0, each of which answers one window at a time."""

    def send(self, number: int, batch: Batch) -> None:
        """Gives a process that waits a window."""

    def receive(self) -> tuple[int, Reply]:
        """Waits until a process says something."""


@dataclass(eq=False)
class _Window:
    batch: Batch | None
    answer: Any = None
    error: Exception | None = None
    done: bool = False


def in_order(
    read: Callable[..., Iterator[Batch]], team: Team, processes: int, known: Callable[[Batch], Any] = lambda _: None
) -> Iterator[tuple[Batch, Any]]:
    """Each window with its answer, in the order of the file. Memory does not grow with the file.

    Args:
        read: gives the file's windows; called with what a process says when it is ready, such as the rows of a window.
        known: gives the predictions of a window that no process has to compute, or None.

    Raises:
        UserError: as one process would, for the first window in the file that cannot be read or answered; or no process can load
            the model.
        WorkerError: something went wrong in a process that no user can put right.
    """
    held: deque[_Window] = deque()  # in the order of the file
    unsent: deque[_Window] = deque()
    at_work: dict[int, _Window] = {}
    idle: deque[int] = deque()
    windows: Iterator[Batch] | None = None
    ended = False
    while True:
        _hand_out(team, idle, unsent, at_work)
        while windows is not None and not ended and len(held) < AHEAD * processes:
            window = _read(windows)
            if window is None or window.error is not None:
                ended = True
            if window is not None:
                held.append(window)
                if window.batch is not None:
                    window.answer = known(window.batch)
                    window.done = window.answer is not None
                if not window.done:
                    unsent.append(window)
            _hand_out(team, idle, unsent, at_work)
        if held and held[0].done:
            window = held.popleft()
            if window.error is not None:
                raise window.error
            assert window.batch is not None
            yield window.batch, window.answer
            continue
        if ended and not held:
            break
        number, (kind, *content) = team.receive()
        idle.append(number)
        if kind == "ready":
            windows = read(*content) if windows is None else windows
            continue
        error = _error(number, processes, kind, content)
        if number not in at_work:  # it was loading the model
            assert error is not None
            raise error
        window = at_work.pop(number)
        window.done, window.error = True, error
        if error is None:
            window.answer = content[0]
        else:  # windows below are of no use; those above may yet have an error of their own
            ended = True
            for later in unsent:
                held.remove(later)
            unsent.clear()


def _read(windows: Iterator[Batch]) -> _Window | None:
    try:
        batch = next(windows, None)
    except Exception as error:
        return _Window(None, error=error, done=True)
    return None if batch is None else _Window(batch)


def _hand_out(team: Team, idle: deque[int], unsent: deque[_Window], at_work: dict[int, _Window]) -> None:
    while idle and unsent:
        number, window = idle.popleft(), unsent.popleft()
        assert window.batch is not None
        at_work[number] = window
        team.send(number, window.batch)


def _error(number: int, processes: int, kind: str, content: list[Any]) -> Exception | None:
    if kind == "refused":
        return UserError(*content)
    if kind == "failed":
        return WorkerError(f"process {number + 1} of {processes} failed:\n{content[0]}")
    return None

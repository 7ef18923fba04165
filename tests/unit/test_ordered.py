"""Windows shared among processes, here ones that exist in name alone: order, room, and whose error is shown."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nlp_transfer.data.sources.table_reader import Batch
from nlp_transfer.inference.ordered import AHEAD, Reply, WorkerError, in_order
from nlp_transfer.utils.errors import Problems, UserError

SIZE = 3


class File:
    """Windows that know how many of them were asked for."""

    def __init__(self, windows: int, broken: Exception | None = None) -> None:
        self.windows, self.broken = windows, broken
        self.read = 0

    def __call__(self, size: int) -> Iterator[Batch]:
        assert size == SIZE
        for i in range(self.windows):
            self.read += 1
            yield Batch({"text": [f"{i}.{k}" for k in range(size)]}, 1 + i * size, size)
        if self.broken is not None:
            raise self.broken


class Team:
    """Processes that answer in the order that `choose` gives among those that are at work or still loading."""

    def __init__(self, processes: int, choose: Callable[[list[int]], int], replies: dict[int, Reply] | None = None) -> None:
        self.at_work: dict[int, Batch | None] = dict.fromkeys(range(processes))  # none: it loads
        self.choose, self.replies = choose, replies or {}
        self.seen: list[int] = []

    def send(self, number: int, batch: Batch) -> None:
        assert number not in self.at_work, "it has something to do already"
        self.at_work[number] = batch
        self.seen.append(window_of(batch))

    def receive(self) -> tuple[int, Reply]:
        assert self.at_work, "nobody will ever say anything"
        number = self.choose(sorted(self.at_work))
        batch = self.at_work.pop(number)
        if batch is None:
            return number, self.replies.get(-1 - number, ("ready", SIZE))
        return number, self.replies.get(window_of(batch), ("answer", batch.columns["text"]))


def window_of(batch: Batch) -> int:
    return batch.first // SIZE


def oldest(numbers: list[int]) -> int:
    return numbers[0]


def newest(numbers: list[int]) -> int:
    return numbers[-1]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("windows", [0, 1, 2, 5, 40])
def test_every_window_comes_once_and_in_order_and_few_are_held(processes: int, windows: int) -> None:
    for seed in range(20):
        file, team = File(windows), Team(processes, random.Random(seed).choice)
        given: list[int] = []
        for batch, answer in in_order(file, team, processes):
            assert answer == batch.columns["text"]
            assert file.read - len(given) <= AHEAD * processes
            given.append(window_of(batch))
        assert given == list(range(windows))
        assert sorted(team.seen) == given


def test_while_the_first_window_is_not_answered_the_others_do_not_run_away() -> None:
    file = File(1000)
    team = Team(3, newest)
    found = in_order(file, team, 3)
    next(found)
    assert file.read == 3 * AHEAD  # the first process was always passed over
    assert len(list(found)) == 999


def refused(*messages: str) -> Reply:
    problems = Problems("in.csv")
    problems.extend(messages)
    return "refused", str(problems), problems


@pytest.mark.parametrize("choose", [oldest, newest])
def test_the_error_is_that_of_the_first_window(choose: Callable[[list[int]], int]) -> None:
    """Whichever process is quicker: the same windows before it, the same message, and nothing far behind it is read."""
    file = File(1000)
    team = Team(3, choose, {4: refused("row 14"), 5: refused("row 16"), 6: ("failed", "ZeroDivisionError")})
    given: list[int] = []
    with pytest.raises(UserError, match="row 14") as error:
        given.extend(window_of(batch) for batch, _ in in_order(file, team, 3))
    assert given == [0, 1, 2, 3]
    assert error.value.problems is not None
    assert error.value.problems.messages == ["row 14"]
    assert file.read <= 5 + 3 * AHEAD


@pytest.mark.parametrize("choose", [oldest, newest])
def test_a_file_that_breaks_later_is_answered_up_to_there(choose: Callable[[list[int]], int]) -> None:
    broken = UserError("in.csv, row 16: found 3 cells")
    given: list[int] = []
    with pytest.raises(UserError) as error:
        given.extend(window_of(batch) for batch, _ in in_order(File(5, broken), Team(4, choose), 4))
    assert error.value is broken
    assert given == [0, 1, 2, 3, 4]


def test_an_error_in_a_row_comes_before_one_below_it_that_was_read_earlier() -> None:
    with pytest.raises(UserError, match="row 4"):
        list(in_order(File(3, UserError("row 10")), Team(4, newest, {1: refused("row 4")}), 4))


def test_what_went_wrong_in_a_process_is_shown() -> None:
    with pytest.raises(WorkerError, match=r"(?s)process 1 of 2 failed:\n.*in answer\nZeroDivisionError"):
        list(in_order(File(9), Team(2, oldest, {0: ("failed", "Traceback\n in answer\nZeroDivisionError")}), 2))


@pytest.mark.parametrize(("number", "choose"), [(0, oldest), (1, newest)])
def test_a_model_that_cannot_be_loaded_ends_it(number: int, choose: Callable[[list[int]], int]) -> None:
    team = Team(2, choose, {-1 - number: ("refused", "there is no model", None)})
    with pytest.raises(UserError, match="there is no model"):
        list(in_order(File(9), team, 2))


def test_a_lost_process_ends_it_at_once() -> None:
    class Losing(Team):
        def receive(self) -> tuple[int, Reply]:
            if len(self.seen) > 3:
                raise UserError("process 2 of 2 was ended by SIGKILL")
            return super().receive()

    given: list[Any] = []
    with pytest.raises(UserError, match="SIGKILL"):
        given.extend(in_order(File(9), Losing(2, oldest), 2))
    assert len(given) < 4

"""Windows: every row once per epoch, independent of the split into micro-batches and processes."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from nlp_transfer.data.windows import Window, WindowPlan, inference_batches, sort_by_length, token_batches

LENGTHS = np.random.default_rng(0).integers(3, 60, 333)
# (batch_size, accumulation, processes): all see 32 rows a step.
SAME_WINDOW = [(32, 1, 1), (8, 4, 1), (16, 1, 2), (4, 4, 2), (4, 2, 4)]


def plan(rows: int = 333, **settings: int) -> WindowPlan:
    return WindowPlan(LENGTHS[:rows], **{"batch_size": 32, "seed": 1} | settings)


def same(first: list[Window], second: list[Window]) -> bool:
    return len(first) == len(second) and all(
        (a.epoch, a.index, a.of) == (b.epoch, b.index, b.of) and np.array_equal(a.rows, b.rows)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize(
    "settings", [{}, {"accumulation": 4}, {"batch_tokens": 200}, {"batch_tokens": 64, "processes": 2}], ids=str
)
@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 333])
def test_every_row_is_in_one_window_per_epoch(rows: int, settings: dict[str, int]) -> None:
    for epoch in (0, 1, 7):
        windows = plan(rows, **settings).windows(epoch)
        assert all(len(window) for window in windows)
        assert sorted(np.concatenate(windows).tolist()) == list(range(rows))


def test_windows_are_full_except_the_last() -> None:
    windows = plan().windows(0)
    assert [len(window) for window in windows] == [32] * 10 + [13]
    assert plan().windows_in_epoch == 11


def test_windows_depend_on_seed_and_epoch() -> None:
    def flat(seed: int, epoch: int) -> list[int]:
        return np.concatenate(plan(seed=seed).windows(epoch)).tolist()

    assert flat(1, 0) == flat(1, 0)
    assert flat(1, 0) != flat(1, 1)
    assert flat(1, 0) != flat(2, 0)


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 900}], ids=str)
@pytest.mark.parametrize("taken", [0, 1, 10, 11, 12, 25])
def test_windows_from_a_position_continue_the_epoch(taken: int, settings: dict[str, int]) -> None:
    straight = list(islice(plan(**settings).windows_from(0, 0), 40))
    epoch, window = (straight[taken - 1].epoch, straight[taken - 1].index + 1) if taken else (0, 0)
    assert same(list(islice(plan(**settings).windows_from(epoch, window), 40 - taken)), straight[taken:])
    assert straight[-1].epoch >= 1, "an end of an epoch is passed"


def test_a_late_position_plans_one_epoch_only() -> None:
    """Windows of earlier epochs are not computed."""
    asked: list[int] = []

    class Counting(WindowPlan):
        def windows(self, epoch: int) -> list[np.ndarray]:
            asked.append(epoch)
            return super().windows(epoch)

    next(Counting(LENGTHS, 32).windows_from(1_000_000, 5))
    assert asked == [1_000_000]


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), SAME_WINDOW)
def test_rows_of_a_step_do_not_depend_on_the_split(batch_size: int, accumulation: int, processes: int) -> None:
    whole = list(islice(plan().windows_from(0, 0), 25))
    cut = plan(batch_size=batch_size, accumulation=accumulation, processes=processes)
    assert same(list(islice(cut.windows_from(0, 0), 25)), whole)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 11, 31, 32])
@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), SAME_WINDOW)
def test_micro_batches_cover_the_window_on_all_processes(batch_size: int, accumulation: int, processes: int, rows: int) -> None:
    cut = plan(batch_size=batch_size, accumulation=accumulation, processes=processes)
    window = np.arange(100, 100 + rows)
    shares = [cut.micro_batches(window, process) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1, "no process waits for another"
    assert len(shares[0]) <= accumulation
    counted = Counter(row for share in shares for micro in share if micro.counted for row in micro.rows.tolist())
    assert counted == Counter(window.tolist())
    assert all(0 < len(micro.rows) <= batch_size for share in shares for micro in share)
    assert all(set(micro.rows) <= set(window) for share in shares for micro in share)


@pytest.mark.parametrize("batch_tokens", [64, 100, 200, 1000])
@pytest.mark.parametrize(("accumulation", "processes"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_micro_batches_respect_the_token_limit(batch_tokens: int, accumulation: int, processes: int) -> None:
    budget = plan(batch_tokens=batch_tokens, accumulation=accumulation, processes=processes)
    for window in budget.windows(0):
        shares = [budget.micro_batches(window, process) for process in range(processes)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(row for share in shares for micro in share if micro.counted for row in micro.rows) == sorted(window)
        for micro in (micro for share in shares for micro in share):
            assert len(micro.rows) * LENGTHS[micro.rows].max() <= batch_tokens


def test_token_limit_is_used_and_independent_of_the_split() -> None:
    whole = plan(batch_tokens=800).windows(0)
    for accumulation, processes in ((4, 1), (1, 2), (2, 4)):
        cut = plan(batch_tokens=800 // accumulation // processes, accumulation=accumulation, processes=processes).windows(0)
        assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))
    padded = [len(window) * LENGTHS[window].max() for window in whole]
    assert np.mean(padded) > 600


def test_row_above_the_token_limit_is_a_batch_of_one() -> None:
    long = WindowPlan(np.array([5, 5, 90, 5, 90]), 32, batch_tokens=20)
    assert sorted(sorted(window.tolist()) for window in long.windows(0)) == [[0, 1, 3], [2], [4]]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 11), (3, 33), (0.5, 6), (2.5, 28), (0.001, 1), (2 / 11, 2)])
def test_steps_of_epochs(epochs: float, steps: int) -> None:
    assert plan().steps(epochs) == steps


def test_steps_with_a_token_limit_sum_over_epochs() -> None:
    budget = plan(batch_tokens=200)
    assert budget.steps(3) == sum(len(budget.windows(epoch)) for epoch in range(3))
    assert len(list(islice(budget.windows_from(0, 0), budget.steps(3)))) == budget.steps(3)


def test_rows_of_similar_length_are_grouped() -> None:
    def padding(windows: list[np.ndarray]) -> float:
        return float(sum((LENGTHS[window].max() - LENGTHS[window]).sum() for window in windows) / LENGTHS.sum())

    shuffled = np.random.default_rng(0).permutation(333)
    assert padding(plan().windows(0)) < 0.2 * padding([shuffled[i : i + 32] for i in range(0, 333, 32)])


def test_source_and_target_are_both_padded_little() -> None:
    """A batch is padded to its longest source and, separately, to its longest target."""
    generator = np.random.default_rng(0)
    source = generator.integers(5, 40, 3000)
    sides = np.stack([source, source + generator.integers(0, 12, 3000)], axis=1)

    def padding(windows: list[np.ndarray]) -> float:
        return float(sum((sides[window].max(0) - sides[window]).sum() for window in windows) / sides.sum())

    two, one = (WindowPlan(sides.sum(1), 30, seed=1, side_lengths=given).windows(0) for given in (sides, None))
    assert padding(two) < 0.6 * padding(one), "by the sum alone short sources meet long ones"
    assert sorted(np.concatenate(two).tolist()) == list(range(3000))
    assert {len(window) for window in two} == {30}
    budget = WindowPlan(sides.sum(1), 30, batch_tokens=1500, side_lengths=sides).windows(0)
    assert padding(budget) < 0.7 * padding(one)
    assert padding(inference_batches(sides, 30)) < 0.6 * padding(inference_batches(sides.sum(1)[:, None], 30))


def test_rows_are_split_by_the_most_varied_length() -> None:
    sides = np.array([[1, 40], [2, 10], [9, 41], [8, 11], [1, 42], [9, 12], [2, 43], [3, 13]])
    assert sort_by_length(sides, 2).tolist() == [1, 7, 3, 5, 0, 4, 6, 2], (
        "short targets first, and on each half short sources first"
    )
    assert sort_by_length(np.array([[3], [1], [2], [1]]), 2).tolist() == [1, 3, 2, 0], (
        "one side: by length, equal ones as they came"
    )


def test_inference_batches_cover_all_rows_longest_first() -> None:
    batches = inference_batches(LENGTHS[:, None], 50)
    assert sorted(np.concatenate(batches).tolist()) == list(range(333))
    assert [LENGTHS[batch].max() for batch in batches] == sorted((LENGTHS[batch].max() for batch in batches), reverse=True)
    assert LENGTHS[batches[0]].max() == LENGTHS.max()
    assert inference_batches(np.zeros((0, 1), np.int64), 50) == []


def test_token_batches_have_little_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.05, 200)
    batches = token_batches(lengths, 1024)
    assert sorted(np.concatenate(batches)) == list(range(200))
    assert all((lengths[rows].max() - lengths[rows]).sum() <= 1024 / 16 for rows in batches)
    assert [len(rows) for rows in token_batches(np.full(100, 20), 1024)] == [51, 49], "without padding, batches are full"


def test_token_batches_respect_the_limit_longest_first() -> None:
    batches = token_batches(LENGTHS, 100)
    assert sorted(np.concatenate(batches).tolist()) == list(range(333))
    for batch, following in pairwise(batches):
        longest = int(LENGTHS[batch].max())
        following_padding = (longest - LENGTHS[batch]).sum() + longest - LENGTHS[following].max()
        assert len(batch) == max(1, 100 // longest) or following_padding > 100 // 16, "full, or too much padding with one more"
        assert len(batch) <= max(1, 100 // longest)
        assert LENGTHS[following].max() <= LENGTHS[batch].min()
    assert token_batches(np.array([500, 7, 0]), 100)[0].tolist() == [0]
    assert token_batches(np.zeros(0, np.int64), 100) == []

"""Learning rate schedules, parameter groups, optimizer state by name, and the moving average."""

from typing import Any

import pytest
import torch
from torch import nn

from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Strategy
from nlp_transfer.training.optimizer import (
    MovingAverage,
    make_optimizer,
    named_groups,
    rate_factor,
    restore_state,
    set_rate,
    state_by_name,
)


def factors(total: int, **settings: Any) -> list[float]:
    training = TrainingConfig(**settings)
    return [round(rate_factor(step, total, training), 4) for step in range(total)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant", "warmup": 0}, [1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup": 2}, [0.5, 1, 1, 1, 1]),
        ({"schedule": "linear", "warmup": 0}, [1, 0.8, 0.6, 0.4, 0.2]),
        ({"schedule": "linear", "warmup": 0.2}, [1, 1, 0.75, 0.5, 0.25]),
        ({"schedule": "cosine", "warmup": 0}, [1, 0.9045, 0.6545, 0.3455, 0.0955]),
        ({"schedule": "linear", "warmup": 50}, [0.2, 0.4, 0.6, 0.8, 1]),
        ({"schedule": "inverse_sqrt", "warmup": 0}, [1, 0.7071, 0.5774, 0.5, 0.4472]),
        ({"schedule": "inverse_sqrt", "warmup": 2}, [0.5, 1, 0.8165, 0.7071, 0.6325]),
        ({"schedule": "inverse_sqrt", "warmup": 0.4}, [0.5, 1, 0.8165, 0.7071, 0.6325]),
        ({"schedule": "inverse_sqrt", "warmup": 50}, [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_schedules(settings: dict[str, Any], expected: list[float]) -> None:
    assert factors(5, **settings) == expected


@pytest.mark.parametrize(("warmup", "steps"), [(400, 400), (0.1, 400), (0, 1), (1, 1)])
def test_inverse_sqrt_decays_after_the_warmup(warmup: float, steps: int) -> None:
    training = TrainingConfig(schedule="inverse_sqrt", warmup=warmup)
    rate = {step: rate_factor(step - 1, 4000, training) for step in range(1, 4001)}  # counted from 1
    assert rate[steps] == max(rate.values()) == 1
    assert all(rate[step] == pytest.approx(step / steps) for step in range(1, steps + 1))
    for times in (4, 9):  # four times the steps: half the rate
        assert rate[times * steps] == pytest.approx(1 / times**0.5)
    assert all(rate[step] > rate[step + 1] > 0 for step in range(steps, 4000))


def test_inverse_sqrt_is_independent_of_total_steps() -> None:
    short, long = (factors(total, schedule="inverse_sqrt", warmup=3) for total in (6, 600))
    assert short == long[:6]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = small()
    model[0].weight.requires_grad_(False)
    groups = named_groups(model, TrainingConfig(weight_decay=0.3), Strategy())
    assert [(group.names, group.weight_decay) for group in groups] == [
        (["2.weight"], 0.3),
        (["0.bias", "1.weight", "1.bias", "2.bias"], 0.0),
    ]


def test_groups_keep_their_learning_rate_scale() -> None:
    groups = named_groups(small(), TrainingConfig(), Strategy())
    groups[1].learning_rate_scale = 10
    optimizer = make_optimizer(small(), groups, 0.1)
    assert set_rate(optimizer, 0.5) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])


def test_parameter_missing_from_groups_is_an_error() -> None:
    class Loses(Strategy):
        def param_groups(self, model: nn.Module, groups: list[Any]) -> list[Any]:
            return groups[:1]

    with pytest.raises(AssertionError, match="exactly one group"):
        named_groups(small(), TrainingConfig(), Loses())


def test_state_by_name_resumes_exactly() -> None:
    model, other = small(), small()
    groups = named_groups(model, TrainingConfig(), Strategy())
    optimizer = make_optimizer(model, groups, 0.1)
    for _ in range(3):
        step(model, optimizer)
    other.load_state_dict(model.state_dict())
    again = make_optimizer(other, list(reversed(groups)), 0.1)  # another order: names decide, not positions
    restore_state(again, state_by_name(optimizer))
    for pair in ((model, optimizer), (other, again)):
        step(*pair)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert "0.weight/exp_avg" in state_by_name(again)


def test_moving_average_update_and_swap() -> None:
    model = small()
    average = MovingAverage(0.5)
    average.include(model)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update(model)
    decay = min(0.5, 2 / 11)
    expected = decay * start + (1 - decay) * (start + 1)
    assert torch.allclose(average.weights["0.weight"], expected)
    average.swap(model)
    assert torch.allclose(model[0].weight, expected)
    average.swap(model)
    assert torch.allclose(model[0].weight, start + 1)

"""AdamW over named parameter groups, the learning rate schedule, optimizer state by name, and the moving average."""

import math

import torch
from torch import nn

from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Combined, Group, Strategy


def named_groups(model: nn.Module, training: TrainingConfig, strategy: Strategy) -> list[Group]:
    """Return the parameter groups of a phase, without empty ones.

    Every trainable parameter is in exactly one group. Biases and normalization weights have no weight decay.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = strategy.param_groups(
        model,
        [
            Group([name for name, p in trainable.items() if p.ndim > 1], training.weight_decay),
            Group([name for name, p in trainable.items() if p.ndim <= 1], 0.0),
        ],
    )
    named = [name for group in groups for name in group.names]
    assert sorted(named) == sorted(trainable), "a strategy must put every trainable parameter in exactly one group"
    return [group for group in groups if group.names]


def ineffective_strategies(model: nn.Module, training: TrainingConfig, strategy: Strategy) -> dict[str, str]:
    """Return why strategies of a combination have no effect, by setting (`strategy.0` and so on)."""

    def rates(parts: tuple[Strategy, ...]) -> dict[str, tuple[float, float]]:
        groups = named_groups(model, training, Combined(parts=parts))
        return {name: (group.weight_decay, group.learning_rate_scale) for group in groups for name in group.names}

    parts = strategy.parts if isinstance(strategy, Combined) else ()
    reasons = {}
    for i, part in enumerate(parts):
        name = registry.name_of(type(part))
        if part.traits.only_trains and not strategy.traits.takes_steps:
            reasons[f"strategy.{i}"] = f"{name} changes only optimizer steps, and this run takes none"
        elif part.traits.only_trains and type(part).loss is Strategy.loss and rates(parts) == rates(parts[:i] + parts[i + 1 :]):
            reasons[f"strategy.{i}"] = f"{name} changes no learning rate in this combination"
    return reasons


def make_optimizer(model: nn.Module, groups: list[Group], learning_rate: float) -> torch.optim.AdamW:
    """Return AdamW, fused if possible. Without its bias correction, runs on small datasets diverge (2006.05987)."""
    parameters = dict(model.named_parameters())
    options = [
        {
            "params": [parameters[name] for name in group.names],
            "names": list(group.names),
            "weight_decay": group.weight_decay,
            "lr": learning_rate * group.learning_rate_scale,
            "initial_lr": learning_rate * group.learning_rate_scale,
        }
        for group in groups
    ]
    device = next(iter(parameters.values())).device.type
    return torch.optim.AdamW(options, lr=learning_rate, fused=device in ("cpu", "cuda"))


def rate_factor(step: int, total: int, training: TrainingConfig) -> float:
    """Return the learning rate of a step relative to the peak.

    The last warmup step has factor 1, and the first one has a factor above 0, unlike in `transformers.get_scheduler`.

    Args:
        step: optimizer step of the phase, counted from 0.
        total: optimizer steps of the phase.
    """
    warmup = math.ceil(round(training.warmup * total, 6)) if training.warmup < 1 else int(training.warmup)
    warmup = min(warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "inverse_sqrt":  # Vaswani et al. 2017, 1706.03762
        return math.sqrt(max(1, warmup) / (step + 1))
    left = (total - step) / max(1, total - warmup)
    return left if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of every group to its peak times `factor`; return the rate without group scales."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.defaults["lr"] * factor)


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer state by `PARAMETER/KEY`, such as `classifier.weight/exp_avg`.

    Unlike positions in groups, names remain valid when another phase trains other parameters.
    """
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_state(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Load optimizer state from `state_by_name`. Parameters without an entry start with empty state."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in saved.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in states.get(name, {}).items():
                # Fused AdamW stores `step` on the device of the parameter, other implementations on the CPU.
                device = parameter.device if key != "step" or group["fused"] else "cpu"
                optimizer.state[parameter][key] = value.to(device, copy=True)


class MovingAverage:
    """Exponential moving average of the trainable weights (Polyak averaging), with a smaller decay in early steps.

    Unlike `torch.optim.swa_utils.AveragedModel`, it copies only trainable weights, can add the parameters of a later phase, and
    exchanges weights for evaluation instead of using a second model.

    Args:
        decay: upper bound of the decay; update n uses min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        """Number of updates."""
        self.weights: dict[str, torch.Tensor] = {}
        """Averages by parameter name."""

    def include(self, model: nn.Module) -> None:
        """Start averaging parameters that have become trainable, from their current values."""
        for name, parameter in model.named_parameters():
            if name in self.weights:  # on the CPU after loading from a checkpoint
                self.weights[name] = self.weights[name].to(parameter.device)
            elif parameter.requires_grad:
                self.weights[name] = parameter.detach().clone()

    def update(self, model: nn.Module) -> None:
        """Move the averages towards the current weights; call it after each optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.weights.items():
                average.lerp_(parameters[name], 1 - decay)

    def swap(self, model: nn.Module) -> None:
        """Exchange weights and averages; a second call restores both."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.weights.items():
                current = parameters[name].detach().clone()
                parameters[name].copy_(average)
                average.copy_(current)

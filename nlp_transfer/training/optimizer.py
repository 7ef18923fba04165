"""The optimizer and its named parameter groups, the learning rate schedule, optimizer state by name, and the moving average."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nlp_transfer.settings import registry
from nlp_transfer.settings.extensions import FUNCTION_FORM, load_function
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Combined, Group, Strategy
from nlp_transfer.utils.console import say_once
from nlp_transfer.utils.errors import UserError, did_you_mean

UNSUITABLE = {
    "LBFGS": "computes the loss several times a step",
    "SparseAdam": "needs sparse gradients",
    "Optimizer": "is abstract",
}
GROUP_SETTINGS = ("lr", "initial_lr", "weight_decay")  # numbers in a parameter group that every start of a run sets again
OF_GROUP = "group."  # prefix of keys for numbers that belong to a parameter group


def named_groups(model: nn.Module, training: TrainingConfig, strategy: Strategy) -> list[Group]:
    """Return the parameter groups of a phase. Empty groups are omitted.

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
    """For each strategy of a combination that has no effect, return the reason, under its setting (`strategy.0` and so on)."""

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


def find_optimizer(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the function that creates the optimizer named by `training.optimizer` from parameter groups and a learning rate.

    Raises:
        UserError: the name is unknown, or the optimizer cannot train with ordinary gradients.
    """
    if ":" in name:
        factory: Callable[..., torch.optim.Optimizer] = load_function("training.optimizer", name)
        return factory
    kinds = {
        each.lower(): kind for each, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and each not in UNSUITABLE
    }  # fmt: skip
    if name.lower() not in kinds:
        known = sorted(kind.__name__ for kind in kinds.values())
        reason = (
            f"which {UNSUITABLE[name]}" if name in UNSUITABLE else f"which torch.optim does not have{did_you_mean(name, known)}"
        )
        raise UserError(
            f"training.optimizer: found {name!r}, {reason}; allowed: adamw, {', '.join(known)}, or your own {FUNCTION_FORM}"
        )
    return kinds[name.lower()]


def make_optimizer(model: nn.Module, groups: list[Group], learning_rate: float, name: str = "adamw") -> torch.optim.Optimizer:
    """Create the optimizer named by `training.optimizer`. AdamW is fused if possible.

    AdamW applies its bias correction. Without it, runs on small datasets can diverge (2006.05987).

    Raises:
        UserError: the optimizer cannot be created, or has other parameter groups.
    """
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
    if name == "adamw":
        return torch.optim.AdamW(options, lr=learning_rate, fused=device in ("cpu", "cuda"))
    try:
        optimizer = find_optimizer(name)(options, learning_rate)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"training.optimizer: {name} cannot be created: {type(error).__name__}: {error}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"training.optimizer: {name} returned {type(optimizer).__name__}; allowed: a torch.optim.Optimizer")
    if [group.get("names") for group in optimizer.param_groups] != [option["names"] for option in options]:
        raise UserError(f"training.optimizer: {name} returned other parameter groups than it received; allowed: the same groups")
    if "weight_decay" not in optimizer.defaults and any(option["weight_decay"] for option in options):
        say_once(f"note: training.weight_decay has no effect: {type(optimizer).__name__} has no weight decay")
    optimizer.defaults["lr"] = learning_rate
    return optimizer


def rate_factor(step: int, total: int, training: TrainingConfig) -> float:
    """Return the learning rate of a step relative to the peak.

    Unlike in `transformers.get_scheduler`, the first warmup step has a factor above 0, and the last one has factor 1.

    Args:
        step: index of the optimizer step in the phase, starting from 0.
        total: number of optimizer steps in the phase.
    """
    warmup = math.ceil(round(training.warmup * total, 6)) if training.warmup < 1 else int(training.warmup)
    warmup = min(warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    if ":" in training.schedule:
        return _user_factor(training.schedule, step - warmup, total - warmup)
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "inverse_sqrt":  # Vaswani et al. 2017, 1706.03762
        return math.sqrt(max(1, warmup) / (step + 1))
    left = (total - step) / max(1, total - warmup)
    return left if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))


def _user_factor(name: str, step: int, steps: int) -> float:
    """Call a user's schedule.

    Raises:
        TypeError, ValueError: it does not return a finite number that is at least 0.
    """
    factor = float(load_function("training.schedule", name)(step, steps))
    if not (math.isfinite(factor) and factor >= 0):
        raise ValueError(f"training.schedule: {name}({step}, {steps}) returned {factor}; allowed: a number from 0")
    return factor


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set the learning rate of every group to its peak times `factor`. Return the rate without the scales of groups."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.defaults["lr"] * factor)


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer state under names of the form `PARAMETER/KEY`, such as `classifier.weight/exp_avg`.

    Names remain valid when another phase trains other parameters; positions in groups do not. Numbers in the state of an
    optimizer other than AdamW are stored as fp64 tensors under `PARAMETER/KEY:int` or `PARAMETER/KEY:float`. If such an
    optimizer is not from PyTorch, numbers in its parameter groups are stored under the first parameter of the group.

    Raises:
        TypeError: the state contains something other than tensors and numbers.
    """
    state: dict[str, torch.Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                state |= _as_tensor(f"{name}/{key}", value)
        if type(optimizer).__module__.partition(".")[0] != "torch":
            changing = {key: value for key, value in group.items() if key not in GROUP_SETTINGS and type(value) in (int, float)}
            for key, value in changing.items():
                state |= _as_tensor(f"{group['names'][0]}/{OF_GROUP}{key}", value)
    return state


def _as_tensor(path: str, value: Any) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {path: value}
    if value is None:
        return {}
    if type(value) not in (int, float):
        raise TypeError(
            f"training.optimizer: the state {path} is of type {type(value).__name__}; allowed: tensors and numbers, which "
            "checkpoints can contain"
        )
    return {f"{path}:{type(value).__name__}": torch.tensor(value, dtype=torch.float64)}


def restore_state(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Load optimizer state from `state_by_name`. Parameters without an entry start with an empty state."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in saved.items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for path, value in states.get(name, {}).items():
                key, _, kind = path.partition(":")
                if kind:
                    number = {"int": int, "float": float}[kind](value.item())
                    if key.startswith(OF_GROUP):
                        group[key.removeprefix(OF_GROUP)] = number
                    else:
                        optimizer.state[parameter][key] = number
                    continue
                # Fused AdamW stores `step` on the device of the parameter, other implementations on the CPU.
                device = parameter.device if key != "step" or group.get("fused") else "cpu"
                optimizer.state[parameter][key] = value.to(device, copy=True)


class MovingAverage:
    """Exponential moving average of the trainable weights (Polyak averaging). In early steps, the decay is smaller.

    Unlike `torch.optim.swa_utils.AveragedModel`, it copies only trainable weights, and can add the parameters of a later phase.
    For evaluation it puts the averages into the model, instead of using a second model.

    Args:
        decay: upper bound of the decay. Update n uses min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        """Number of updates."""
        self.weights: dict[str, torch.Tensor] = {}
        """Averages by parameter name."""

    def include(self, model: nn.Module) -> None:
        """Add parameters that have become trainable. Their averages start from the current values."""
        for name, parameter in model.named_parameters():
            if name in self.weights:  # it is on the CPU after it was loaded from a checkpoint
                self.weights[name] = self.weights[name].to(parameter.device)
            elif parameter.requires_grad:
                self.weights[name] = parameter.detach().clone()

    def update(self, model: nn.Module) -> None:
        """Move the averages toward the current weights. Call this after each optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.weights.items():
                average.lerp_(parameters[name], 1 - decay)

    def swap(self, model: nn.Module) -> None:
        """Exchange weights and averages. A second call restores both."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.weights.items():
                current = parameters[name].detach().clone()
                parameters[name].copy_(average)
                average.copy_(current)

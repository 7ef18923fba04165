"""AdamW over named groups, its schedule, and state kept by parameter name so that it survives a change of phase."""

import math

import torch
from torch import nn

from nlp_transfer.settings import registry
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.strategies import Combined, Group, Strategy


def named_groups(model: nn.Module, training: TrainingConfig, strategy: Strategy) -> list[Group]:
    """Every trainable parameter in exactly one group; biases and normalisation weights are not decayed."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = strategy.param_groups(
        model,
        [
            Group([name for name, p in trainable.items() if p.ndim > 1], training.weight_decay),
            Group([name for name, p in trainable.items() if p.ndim <= 1], 0.0),
        ],
    )
    named = [name for group in groups for name in group.names]
    assert sorted(named) == sorted(trainable), "a strategy must keep every trainable parameter in exactly one group"
    return [group for group in groups if group.names]


def idle_parts(model: nn.Module, training: TrainingConfig, strategy: Strategy) -> dict[str, str]:
    """The strategies of a list that change nothing beside the others: `strategy.0` and so on, with the reason."""

    def settled(parts: tuple[Strategy, ...]) -> dict[str, tuple[float, float]]:
        groups = named_groups(model, training, Combined(parts=parts))
        return {name: (group.weight_decay, group.learning_rate_scale) for group in groups for name in group.names}

    parts = strategy.parts if isinstance(strategy, Combined) else ()
    idle = {}
    for i, part in enumerate(parts):
        name = registry.name_of(type(part))
        if part.only_trains and not strategy.takes_steps():
            idle[f"strategy.{i}"] = f"no optimizer step is taken, in which {name} would change anything"
        elif part.only_trains and type(part).loss is Strategy.loss and settled(parts) == settled(parts[:i] + parts[i + 1 :]):
            idle[f"strategy.{i}"] = f"beside the others {name} changes no learning rate"
    return idle


def make_optimizer(model: nn.Module, groups: list[Group], learning_rate: float) -> torch.optim.AdamW:
    """AdamW with bias correction (without it few-sample runs diverge, 2006.05987), fused where the device has it."""
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
    """Factor on the peak rate in optimiser step `step`, counted from 0.

    The warm-up reaches 1 in its last step and its first step is above 0, so no step is wasted on a rate of zero.
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
    """Sets every group's rate and gives back the run's own, on which each group's is a factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.defaults["lr"] * factor)


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's tensors as `NAME/exp_avg` and so on."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_state(optimizer: torch.optim.Optimizer, saved: dict[str, torch.Tensor]) -> None:
    """Puts back what `state_by_name` gave; parameters that are not in it start fresh."""
    own: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in saved.items():
        name, _, key = path.rpartition("/")
        own.setdefault(name, {})[key] = value
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in own.get(name, {}).items():
                # Fused kernels count steps on the device, the others on the CPU.
                device = parameter.device if key != "step" or group["fused"] else "cpu"
                optimizer.state[parameter][key] = value.to(device, copy=True)


class MovingAverage:
    """An exponential moving average of the trainable weights (Polyak averaging); early steps weigh less."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.shadow: dict[str, torch.Tensor] = {}

    def include(self, model: nn.Module) -> None:
        """Averages from now on also what has been set free since; its average starts at its weights."""
        for name, parameter in model.named_parameters():
            if name in self.shadow:  # read from a checkpoint it is on the CPU
                self.shadow[name] = self.shadow[name].to(parameter.device)
            elif parameter.requires_grad:
                self.shadow[name] = parameter.detach().clone()

    def update(self, model: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.shadow.items():
                average.lerp_(parameters[name], 1 - decay)

    def swap(self, model: nn.Module) -> None:
        """Exchanges the weights with the averages; a second call puts them back."""
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, average in self.shadow.items():
                kept = parameters[name].detach().clone()
                parameters[name].copy_(average)
                average.copy_(kept)

"""Gradual unfreezing: train the head first, then unfreeze the layers from the top down.

When to use it: if full fine-tuning is unstable or causes forgetting, since the head is no longer random when training of the
pretrained layers begins. For the full recipe of the paper, which also uses layer-wise learning rates, combine two strategies:
[gradual_unfreezing, layerwise_lr].

Cost: at most that of full fine-tuning, since frozen layers need no gradient. With ten labeled rows per class (Banking77, TREC;
MiniLM) there was no measurable improvement over full fine-tuning.

Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", 1801.06146.
"""

from typing import Annotated, Any, Literal

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.layers import has_decoder, new_parameters
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, inner_layers, scale_head, separate_layers
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import Problems, UserError


class GradualUnfreezing(Strategy):
    """Train in phases from the head down to the embeddings.

    The learning rate schedule restarts in each phase; the optimizer state is kept.
    """

    layers_at_a_time: Count = 1
    """Number of layers to unfreeze in each phase."""
    by: Literal["epoch", "plateau"] = "epoch"
    """When to unfreeze the next layers. `epoch`: after each epoch; in short runs earlier, so that all layers are trained for at
    least half of the steps. `plateau`: after `patience` evaluations without improvement, or at the latest after
    `training.epochs`."""
    patience: Annotated[Count, UsedWith(by="plateau")] = 1
    """With `by: plateau`, the number of evaluations without improvement after which a phase ends."""

    @property
    def traits(self) -> StrategyTraits:
        return StrategyTraits(owns_parameters=True, owns_phases=True, needs_validation=self.by == "plateau")

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        if self.by == "plateau":
            problems.no_effect("training.early_stopping", "with strategy.by plateau, strategy.patience takes its place")
        return task

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check the model.

        Raises:
            UserError: If layers share their weights, or the model has no new part to train first.
        """
        layers = separate_layers(model, "gradual_unfreezing", "they cannot be unfrozen one by one")
        if has_decoder(model) and layers.decoder:
            raise UserError(
                "strategy.name: found gradual_unfreezing; this encoder-decoder has no new part to train first; "
                "allowed: an encoder with a new decoder or head, or another strategy"
            )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """With `by: plateau`, check that there is a validation split."""
        if self.by == "plateau" and "validation" not in job.tables:
            raise UserError(
                "strategy.by: found plateau; there is no validation split to evaluate on; allowed: epoch, data.validation, or "
                "data.validation_share above 0"
            )
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, HEAD_SCALE)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if "phases" not in state.memory:
            # Recorded before the first phase, when this strategy has not frozen any parameters yet.
            state.memory["phases"] = self._phases(view)
            state.memory["free"] = [name for name, parameter in view.model.named_parameters() if parameter.requires_grad]
        if len(state.finished) == len(state.memory["phases"]):
            return None
        phase = state.memory["phases"][len(state.finished)]
        layers, new = inner_layers(view.model), new_parameters(view.model)
        names = tuple(name for name in state.memory["free"] if layers.depth_of(name) >= phase["depth"] or name in new)
        if self.by == "epoch":  # `epochs` already divides the steps among the phases
            return Phase(phase["name"], trainable=names, epochs=phase["epochs"])
        following = len(state.memory["phases"]) - len(state.finished) - 1
        return Phase(phase["name"], trainable=names, epochs=phase["epochs"], patience=self.patience, following=following)

    def _phases(self, view: View) -> list[dict[str, Any]]:
        """Return the name, the lowest trained layer (`depth`) and the number of epochs of each phase, as JSON.

        A run that is too short for all phases goes directly from an early phase to the last one.
        """
        depth = inner_layers(view.model).depth
        depths = [
            max(1, depth + 1 - count)
            for count in range(self.layers_at_a_time, depth + self.layers_at_a_time, self.layers_at_a_time)
        ]
        early = [{"name": "head", "depth": depth + 1}, *({"name": f"layer {i} and above", "depth": i} for i in depths)]
        last = {"name": "all", "depth": 0}
        if self.by == "plateau":
            return [{**phase, "epochs": None} for phase in [*early, last]]
        windows = view.windows_in_epoch
        steps = max(1, round(view.epochs * windows))
        early = early[: steps // 2]
        each = min(windows, steps // 2 // len(early)) if early else 0
        return [{**phase, "epochs": each / windows} for phase in early] + [
            {**last, "epochs": (steps - each * len(early)) / windows}
        ]

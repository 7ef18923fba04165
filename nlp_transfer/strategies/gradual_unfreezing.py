"""Gradual unfreezing: first the head alone is trained, then layer after layer from the top down joins in.

Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", 1801.06146: what is pretrained moves
only when the head above it has ceased to be random, so that less of it is forgotten. Their whole recipe also has rates that
fall with depth: [gradual_unfreezing, layerwise_lr].

With ten labelled rows a class (Banking77, TREC; MiniLM) it was not measurably better than plain full fine-tuning.
"""

from typing import Annotated, Any, ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import has_decoder, new_parameters
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.schema import Count
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, scale_head, separate_layers
from nlp_transfer.tasks import Task
from nlp_transfer.utils.errors import UserError


class GradualUnfreezing(Strategy):
    """Phases from the head down to the embeddings; the schedule of the learning rate begins anew in each, and the
    optimiser's moments go on."""

    chooses_parameters: ClassVar[bool] = True

    layers_at_a_time: Count = 1
    """How many layers each phase sets free."""
    by: Literal["epoch", "plateau"] = "epoch"
    """When the next layers join in. `epoch`: after an epoch, or less where half of the run would not suffice for that; the
    other half at least trains everything. `plateau`: when `patience` evaluations were no better, after `training.epochs` at
    the latest."""
    patience: Annotated[Count, UsedWith(by="plateau")] = 1
    """Evaluations without improvement after which a phase ends, with `by: plateau`."""

    def unused(self, task: Task) -> dict[str, str]:
        reason = "with strategy.by plateau, strategy.patience takes its place"
        return {"training.early_stopping": reason} if self.by == "plateau" else {}

    def needs_validation(self) -> bool:
        return self.by == "plateau"

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where the model has no separate layers, or nothing above them that would have to go first."""
        layers = separate_layers(model, "gradual_unfreezing", "none can be set free before another")
        if has_decoder(model) and layers.decoder:
            raise UserError(
                "strategy.name: found gradual_unfreezing; this encoder-decoder came trained as a whole and has no new part that "
                "would have to learn first; allowed: an encoder with a new decoder or head, or another strategy"
            )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Raises a UserError where a plateau is waited for without validation."""
        if self.by == "plateau" and "validation" not in job.tables:
            raise UserError(
                "strategy.by: found plateau; there is no validation that could show one; allowed: epoch, or data.validation, or "
                "data.validation_share above 0"
            )
        return job

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, HEAD_SCALE)

    def next_phase(self, state: State, view: View) -> Phase | None:
        if "phases" not in state.memory:
            # Settled once, while all that may ever be trained is still free: what a phase fixes looks no different later.
            state.memory["phases"] = self._phases(view)
            state.memory["free"] = [name for name, parameter in view.model.named_parameters() if parameter.requires_grad]
        if len(state.finished) == len(state.memory["phases"]):
            return None
        phase = state.memory["phases"][len(state.finished)]
        layers, new = separate_layers(view.model, "gradual_unfreezing", ""), new_parameters(view.model)
        names = tuple(name for name in state.memory["free"] if layers.depth_of(name) >= phase["depth"] or name in new)
        plateau = self.by == "plateau"
        following = len(state.memory["phases"]) - len(state.finished) - 1 if plateau else 0  # else epochs share the steps out
        patience = self.patience if plateau else None
        return Phase(phase["name"], trainable=names, epochs=phase["epochs"], patience=patience, following=following)

    def _phases(self, view: View) -> list[dict[str, Any]]:
        """Name, lowest depth that is trained, and passes over train, of each phase; as JSON.

        A run of too few steps for all of them goes from the first ones straight to the last.
        """
        depth = separate_layers(view.model, "gradual_unfreezing", "").depth
        freed = [
            max(1, depth + 1 - count)
            for count in range(self.layers_at_a_time, depth + self.layers_at_a_time, self.layers_at_a_time)
        ]
        early = [{"name": "head", "depth": depth + 1}, *({"name": f"layer {i} and above", "depth": i} for i in freed)]
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

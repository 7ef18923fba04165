"""The value that `fine_tune` hands from one stage to the next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from nlp_transfer.data.splits import Splits
from nlp_transfer.data.unused_settings import find_unused
from nlp_transfer.evaluation.metrics.user_metrics import UserMetrics
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.strategies import Job, Strategy, nested_tasks, parts_of
from nlp_transfer.tasks import Arrays, Task
from nlp_transfer.training.callbacks import Callback
from nlp_transfer.training.trainer import Trainer

Metrics = dict[str, dict[str, float]]
"""Metrics by split and name."""
LATER: Any = None  # the value of a field that a later stage sets


@dataclass(frozen=True)
class Run:
    """A fine-tuning run. Each stage of `fine_tune` returns a copy with the results of the stage.

    Attributes:
        config: The settings as given; `data.validation_share` is resolved when the data are read.
        task: The task; fitted when the data are read, and prepared for the checkpoint before the rows are encoded.
        unused: Settings that were set but have no effect; maps each dotted name to the reason.
        user_metrics: Metrics passed to `fine_tune`.
        callbacks: Callbacks passed to `fine_tune`.
        hub_metrics: Metrics of `training.hub_metrics` (set by `read`).
        checkpoint: The pretrained checkpoint (set by `read`).
        splits: The rows of each split (set by `read`).
        job: The task with its token tables, on which the saved model is scored (set by `encode`; `build` adds the training
            settings, device and precision).
        trainer: Trains the model with the tables and settings that the strategy prepared (set by `build`).
        document: The content of `config.yaml` (set by `build`).
        preparation_seconds: Duration of `build`, including cached features (set by `build`).
        data_seconds: The part of it that `Strategy.prepare_data` took, which grows with the number of rows (set by `build`).
        speed: The entry `train` of `result.json` (set by `train`).
        model: The saved model, loaded again (set by `save`).
        calibration: Temperature and threshold that were fitted on validation (set by `save`).
        auxiliary: The job and the trained model of each auxiliary task (set by `save`).
        auxiliary_results: The entry `tasks` of `result.json` (set by `score`).
        metrics: Metrics by split and name (set by `score`).
        predictions: Predictions of each split, arrays of shape (rows, ...) by name (set by `score`).
        result: The content of `result.json` (set by `report`).
        data_notes: Lines about the data that were printed (set by `read`).
        choice: The content of `strategy_choice.json`, if trials chose the strategy (set by `choose_strategy`).
    """

    config: RunConfig
    task: Task
    strategy: Strategy
    unused: dict[str, str] = field(default_factory=dict)
    user_metrics: UserMetrics = field(default_factory=lambda: UserMetrics(()))
    callbacks: Sequence[Callback] = ()
    hub_metrics: list[Any] = field(default_factory=list)
    checkpoint: Checkpoint = LATER
    splits: Splits = LATER
    job: Job = LATER
    trainer: Trainer = LATER
    document: dict[str, Any] = LATER
    preparation_seconds: float = 0.0
    data_seconds: float = 0.0
    speed: dict[str, Any] = LATER
    model: PreTrainedModel = LATER
    calibration: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: Mapping[str, tuple[Job, PreTrainedModel]] = LATER
    auxiliary_results: dict[str, dict[str, Any]] = LATER
    metrics: Metrics = LATER
    predictions: dict[str, Arrays] = LATER
    result: dict[str, Any] = LATER
    data_notes: Sequence[str] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes the files of the run."""
        return bool(self.trainer.accelerator.is_main_process)

    @property
    def references(self) -> dict[str, Arrays]:
        """Targets of each predicted split, arrays of shape (rows, ...) by name."""
        return {split: self.job.tables[split].references for split in self.predictions}

    def with_validation_share(self, share: float | None) -> "Run":
        """Return the run with `data.validation_share` set to `share`, or unchanged if `share` is None."""
        if share is None:
            return self
        data = self.config.data.model_copy(update={"validation_share": share})
        config = self.config.model_copy(update={"data": data})
        unused = find_unused(config, self.task, self.strategy, parts_of(self.strategy), nested_tasks(self.strategy))
        return replace(self, config=config, unused=unused.reported)

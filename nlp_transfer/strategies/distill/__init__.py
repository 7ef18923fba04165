"""Distillation: train a small student model on the predictions of one or several fine-tuned teachers.

When to use it: for a smaller, faster model with slightly lower accuracy, especially with unlabeled rows (`data.unlabelled`),
which the teachers label.

Cost: one forward pass of each teacher per row, then the cost of full fine-tuning. Teacher outputs take 4 bytes per row and
    label; with `hidden`, also 4 bytes x the encoder width per row and student layer.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", 1503.02531. Hidden states are normalized before the
comparison, as in Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", 1908.09355, and averaged over
all tokens, similar to Jiao et al. 2020, "TinyBERT", 1909.10351. The student can be initialized with some layers of a pretrained
model, as in Sanh et al. 2019, "DistilBERT", 1910.01108.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from scipy.special import expit, softmax
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from nlp_transfer.data.splits import UNLABELLED
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.models.layers import encoder_config, is_encoder_decoder, width
from nlp_transfer.settings.annotations import NamesModel
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.base_settings import Count, Name, Positive, Settings
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.layer_depth import scale_mixed_head
from nlp_transfer.strategies.distill.layer_reduction import keep_layers
from nlp_transfer.strategies.distill.teachers import Teacher, layer_directions
from nlp_transfer.tasks import Batch, Objective, Task
from nlp_transfer.utils.errors import Problems, UserError, shorten

OBJECTIVE = "distill"


class Distill(Strategy):
    """Train the model, or some of its layers, on labels and teacher predictions.

    The teachers predict all rows once, before training, in evaluation mode.
    """

    teacher: Annotated[Name | Annotated[list[Name], Field(min_length=1)] | None, NamesModel()] = None
    """A model fine-tuned for this task, or a list of such models, whose predictions are averaged. Each is given as a run
    folder, a model folder, a hub id or pypi:... null: no teacher; the student is trained on labels only."""
    student_layers: Count | None = None
    """Number of layers of the student: the first, the last, and evenly spaced layers in between. null: all layers."""
    temperature: Annotated[Positive, UsedWith(teacher=Not(None))] = 2.0
    """Softmax temperature of teacher and student. Higher values give unlikely labels more weight. Regression does not use it."""
    alpha: Annotated[float, Field(gt=0, le=1), UsedWith(teacher=Not(None))] = 0.5
    """Weight of the loss on teacher predictions. The weight of the loss on labels is 1 - alpha."""
    hidden: Annotated[float, Field(ge=0), UsedWith(teacher=Not(None))] = 0.0
    """Weight of the distance between the hidden states of student and teachers, whose widths must be equal. 0: off."""

    _hooks: list[Any] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _check_not_empty(self) -> "Distill":
        if self.teacher is None and self.student_layers is None:
            raise ValueError("a teacher, or student_layers, or both")
        return self

    @property
    def traits(self) -> StrategyTraits:
        is_shortened, has_teacher = self.student_layers is not None, self.teacher is not None
        return StrategyTraits(
            needs_task="vector",
            owns_phases=has_teacher,
            position="first" if is_shortened else "any",
            shortened_by="strategy.student_layers" if is_shortened else None,
            uses_unlabelled=has_teacher,
            uses_weights=not has_teacher,
        )

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        if task.traits.prediction == "number":
            problems.no_effect("strategy.temperature", "a regression has no probabilities")
        if self.teacher is not None and self.alpha == 1:
            for name in ("class_weights", "focal_gamma", "label_smoothing"):
                problems.no_effect(f"training.{name}", "with strategy.alpha 1 the labels are not used")
        return task

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Give the head a higher learning rate, unless another strategy in the list determines that rate."""
        return scale_mixed_head(model, groups)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Remove layers from the student. With `hidden`, make it return hidden states until `export_model` is called.

        Raises:
            UserError: If the model has too few layers, or has a head that does not return hidden states.
        """
        if self.student_layers is not None:
            model = keep_layers(model, self.student_layers, "strategy.student_layers")
        if self.teacher is not None and self.hidden:
            _check_states(model, "the student")
            # A hook, because peft ignores `output_hidden_states` in the configuration.
            self._hooks.append(model.register_forward_pre_hook(_output_states, with_kwargs=True))
        return model

    def export_model(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        while self._hooks:
            self._hooks.pop().remove()
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Add the unlabeled rows and the predictions of the teachers to the training table.

        Raises:
            UserError: If a teacher cannot be used, or the settings augment or oversample rows.
        """
        if self.teacher is None:
            return job
        for name in ("augment", "oversample"):
            if value := getattr(job.training, name):
                shown = value.model_dump(exclude_defaults=True) if isinstance(value, Settings) else value
                raise UserError(
                    f"training.{name}: found {shorten(shown)}; teachers predict each unchanged text once; allowed with "
                    "strategy.teacher: null"
                )
        splits = [split for split in ("train", UNLABELLED) if split in job.tables]
        tables = {split: job.tables[split] for split in splits}
        sources = [self.teacher] if isinstance(self.teacher, str) else self.teacher
        kind = str(model.config.problem_type)
        teacher_outputs = self._teacher_outputs(sources, job, model, splits)
        extended = []
        for split, table in tables.items():
            soft, states = teacher_outputs[split]
            columns = {"target_soft": soft} | ({} if states is None else {"target_states": states})
            labels = job.tables["train"].dense["labels"]
            if split == UNLABELLED:  # placeholder labels
                columns["labels"] = np.zeros((len(table), *labels.shape[1:]), labels.dtype)
            columns["target_hard"] = np.full(len(table), split != UNLABELLED)
            extended.append(replace(table, dense=table.dense | columns))
        labeled = job.task.objective(job.training, job.tables["train"])
        objective = DistillationObjective(labeled, kind, self.temperature, self.alpha, self.hidden)
        return replace(
            job,
            tables=job.tables | {"train": TokenTable.concatenate(extended)},
            objectives=job.objectives | {OBJECTIVE: objective},
        )

    def _teacher_outputs(
        self, sources: list[str], job: Job, student: PreTrainedModel, splits: list[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """Return the outputs of the teachers for each split, averaged over the teachers.

        Returns:
            For each split, soft targets, float32 of shape (rows, labels); and with `hidden`, normalized hidden states, float32
            of shape (rows, layers, width), otherwise None.
        """
        kind, layers = str(student.config.problem_type), _depth(student) if self.hidden else 0
        sums: dict[str, list[np.ndarray]] = {}
        for source in sources:  # one at a time, to limit memory use
            teacher = Teacher.open(source, student)
            if self.hidden:
                _check_states(teacher.model, source)
                _check_widths(width(teacher.model), width(student), source)
            for split in splits:
                logits, states = teacher.predict(job, split, layers)
                outputs = [soft_targets(logits, kind, self.temperature)] + ([] if states is None else [states])
                sums[split] = [a + b for a, b in zip(sums[split], outputs, strict=True)] if split in sums else outputs
        result: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for split, outputs in sums.items():
            means = [output / np.float32(len(sources)) for output in outputs]
            result[split] = means[0], _normalize(means[1]) if layers else None
        return result

    def next_phase(self, state: State, view: View) -> Phase | None:
        if self.teacher is None:
            return super().next_phase(state, view)
        return None if state.finished else Phase(objective=OBJECTIVE)


def _output_states(_: nn.Module, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """In training, make the forward pass return hidden states."""
    return arguments, inputs | ({"output_hidden_states": True} if torch.is_grad_enabled() else {})


def soft_targets(logits: np.ndarray, kind: str, temperature: float) -> np.ndarray:
    """Return the soft targets of a teacher: its probabilities at a temperature or, in a regression, its predictions.

    Args:
        logits: float32 of shape (rows, labels). The result has the same type and shape.
        kind: transformers' `problem_type`.
    """
    if kind == "regression":
        return logits
    wide = logits.astype(np.float64) / temperature
    return (expit(wide) if kind == "multi_label_classification" else softmax(wide, -1)).astype(np.float32)


@dataclass(frozen=True)
class DistillationObjective(Objective):
    """The loss of the student.

    It is the sum of three terms: the task's loss on labeled rows, with weight 1 - `alpha`; the distance to the teachers'
    predictions on all rows, with weight `alpha`; and the distance to the teachers' hidden states, with weight `hidden`.

    A batch also contains `target_soft`, the predictions of the teachers, float32 of shape (rows, labels), and `target_hard`,
    bool of shape (rows,), which tells whether a row is labeled. With `hidden` it also contains `target_states`, the hidden
    states of the teachers, float32 of shape (rows, layers, width).

    Attributes:
        labeled: The loss of the task.
    """

    labeled: Objective
    kind: str
    temperature: float
    alpha: float
    hidden: float

    def count(self, batch: Batch) -> dict[str, float]:
        """Return the number of items of each term.

        The counts of the terms of the task are scaled up from the labeled rows to all rows. The weight of a labeled row
        therefore does not depend on the number of unlabeled rows in the same optimizer step.
        """
        soft = batch["target_soft"]
        rows, labeled = float(len(soft)), float(batch["target_hard"].sum())
        counts = self.labeled.count(_labeled(batch))
        counts = {name: count * rows / labeled if labeled else 1.0 for name, count in counts.items()}
        return counts | {"rows": rows, "soft": float(soft.numel()) if self._by_label else rows, "hidden": rows}

    def loss(self, outputs: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the loss terms, summed over rows (fp32, shape ()): those of the task, `soft` and `hidden`."""
        logits = outputs.logits.float()
        losses = self.labeled.loss(SimpleNamespace(logits=logits[batch["target_hard"]]), _labeled(batch))
        terms = {name: (1 - self.alpha) * value for name, value in losses.items()}
        terms["soft"] = self.alpha * self.soft(logits, batch["target_soft"])
        if self.hidden:
            targets = batch["target_states"]
            states = layer_directions(outputs, batch["attention_mask"], targets.shape[1])
            terms["hidden"] = self.hidden * (states - targets).square().sum(-1).mean(-1).sum()
        return terms

    def soft(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the KL divergence from the teachers' probabilities or, in a regression, the squared error, summed over rows.

        The divergence is multiplied by the squared temperature, so that the size of gradients does not depend on the temperature.

        Args:
            logits: Shape (rows, labels).
            targets: Shape (rows, labels).
        """
        if self.kind == "regression":
            return (logits - targets).square().sum()
        scaled = logits / self.temperature
        if self._by_label:
            entropy = (torch.special.entr(targets) + torch.special.entr(1 - targets)).sum()
            divergence = F.binary_cross_entropy_with_logits(scaled, targets, reduction="sum") - entropy
        else:
            divergence = F.kl_div(scaled.log_softmax(-1), targets, reduction="sum")
        return self.temperature**2 * divergence

    @property
    def _by_label(self) -> bool:
        return self.kind == "multi_label_classification"


def _labeled(batch: Batch) -> Mapping[str, torch.Tensor]:
    labels = batch["labels"]
    return {"labels": labels[batch["target_hard"].to(labels.device)]}


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12).astype(np.float32)


def _depth(model: PreTrainedModel) -> int:
    return int(encoder_config(model.config).num_hidden_layers)


def _check_states(model: Any, name: str) -> None:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(plain, EncoderHeadForSequenceClassification):
        raise UserError(
            f"strategy.hidden: {name} has a head of this toolkit, which does not return hidden states; allowed: 0, or "
            "task.head: family"
        )
    if is_encoder_decoder(plain):
        raise UserError(
            f"strategy.hidden: {name} is a {plain.config.model_type} model, an encoder-decoder, whose hidden states cannot "
            "be compared; allowed: 0"
        )


def _check_widths(teacher: int, student: int, name: str) -> None:
    if teacher != student:
        raise UserError(
            f"strategy.hidden: the hidden states of {name} have width {teacher}, those of the student {student}; allowed: 0, or "
            "a teacher of the same width"
        )

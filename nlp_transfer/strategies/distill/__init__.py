"""Distillation: a smaller student learns the answers of one teacher or several, also for rows that nobody has labelled.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", 1503.02531. States inside are compared as in Sun et al. 2019,
"Patient Knowledge Distillation for BERT Model Compression", 1908.09355, by direction, and as in Jiao et al. 2020, "TinyBERT",
1910.01109, over all tokens. A student that starts from layers of a pretrained model: Sanh et al. 2019, "DistilBERT", 1910.01108.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, model_validator
from scipy.special import expit, softmax
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from nlp_transfer.data.splits import UNLABELLED
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.checkpoint import encoder_config, has_decoder, is_encoder_decoder, width
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.schema import Count, Name, Positive, Settings, TrainingConfig
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.layer_depth import scale_mixed_head
from nlp_transfer.strategies.distill.layer_reduction import keep_layers
from nlp_transfer.strategies.distill.teachers import Teacher, layer_directions
from nlp_transfer.tasks import PLAIN_LOSS, Batch, LossOptions, Task
from nlp_transfer.utils.errors import UserError, shorten

OBJECTIVE = "distill"


class Distill(Strategy):
    """Trains `model`, or some of its layers, on what teachers answer for train and `data.unlabelled`, and on the labels.

    The teachers are asked once, in evaluation mode; their answers are kept. Memory: 4 bytes a row and label, and with `hidden`
    also a row, layer of the student and element of its width.
    """

    teacher: Name | Annotated[list[Name], Field(min_length=1)] | None = None
    """A model that was fine-tuned for this task, or a list of such: run folders, model folders, hub ids, pypi:...; the
    probabilities of several are averaged. null: none; the student then learns from the labels alone."""
    student_layers: Count | None = None
    """Layers that the student keeps of `model`: the first, the last and others evenly in between; null: all."""
    temperature: Annotated[Positive, UsedWith(teacher=Not(None))] = 2.0
    """Divides the logits of both sides: above 1 the less likely labels count more. A regression has none."""
    alpha: Annotated[float, Field(gt=0, le=1), UsedWith(teacher=Not(None))] = 0.5
    """Weight of the teachers' answers; the labels have the rest."""
    hidden: Annotated[float, Field(ge=0), UsedWith(teacher=Not(None))] = 0.0
    """Weight of the distance between the states of student and teachers, layer by layer; both must be of one width. 0: none."""

    _shown: list[Any] = PrivateAttr(default_factory=list)

    @model_validator(mode="after")
    def _has_something_to_do(self) -> "Distill":
        if self.teacher is None and self.student_layers is None:
            raise ValueError("a teacher, or student_layers, or both")
        return self

    def models(self) -> dict[str, list[str]]:
        teachers = [self.teacher] if isinstance(self.teacher, str) else self.teacher or []
        return {"teacher": teachers} if teachers else {}

    def place(self) -> Literal["any", "first", "alone"]:
        return "first" if self.student_layers is not None else "any"

    def owns_phases(self) -> bool:
        return self.teacher is not None

    def uses_unlabelled(self) -> bool:
        return self.teacher is not None

    def unused(self, task: Task) -> dict[str, str]:
        reasons = {"strategy.temperature": "a regression has no probabilities"} if task.prediction_kind == "number" else {}
        if self.teacher is not None and self.alpha == 1:
            names = ("class_weights", "focal_gamma", "label_smoothing")
            reasons |= {f"training.{name}": "with strategy.alpha 1 the labels are not learned from" for name in names}
        return reasons

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """As in full fine-tuning the head learns faster than pretrained layers."""
        return scale_mixed_head(model, groups)

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Leaves the student's layers, and with `hidden` lets it show its states until `unwrap`.

        Raises:
            UserError: the model writes text; has fewer layers; or has a head that shows no states.
        """
        if has_decoder(model):
            raise UserError(
                "strategy.name: found distill, which copies one answer a row; a translation is distilled by training on what the "
                "teacher wrote (nlp-transfer translate) with another strategy; allowed here: tasks that answer with labels or a "
                "number"
            )
        if self.student_layers is not None:
            model = keep_layers(model, self.student_layers, "strategy.student_layers")
        if self.teacher is not None and self.hidden:
            _check_states(model, "the student")
            # By a hook and not in the configuration, which peft passes over.
            self._shown.append(model.register_forward_pre_hook(_show_states, with_kwargs=True))
        return model

    def unwrap(self, model: PreTrainedModel, folder: Path) -> PreTrainedModel:
        while self._shown:
            self._shown.pop().remove()
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Train becomes train and the unlabelled rows, with what the teachers answer.

        Raises:
            UserError: a teacher cannot be used, or rows change or are repeated while training.
        """
        if self.teacher is None:
            return job
        for name in ("augment", "oversample"):
            if value := getattr(job.training, name):
                shown = value.model_dump(exclude_defaults=True) if isinstance(value, Settings) else value
                raise UserError(
                    f"training.{name}: found {shorten(shown)}; teachers are asked once, about each text as it is; allowed beside "
                    "strategy.teacher: null"
                )
        splits = [split for split in ("train", UNLABELLED) if split in job.tables]
        tables = {split: job.tables[split] for split in splits}
        sources = [self.teacher] if isinstance(self.teacher, str) else self.teacher
        kind = str(model.config.problem_type)
        found = self._ask(sources, job, model, splits)
        parts = []
        for split, table in tables.items():
            soft, states = found[split]
            columns = {"target_soft": soft} | ({} if states is None else {"target_states": states})
            labels = job.tables["train"].dense["labels"]
            if split == UNLABELLED:  # labels that nothing looks at
                columns["labels"] = np.zeros((len(table), *labels.shape[1:]), labels.dtype)
            columns["target_hard"] = np.full(len(table), split != UNLABELLED)
            parts.append(replace(table, dense=table.dense | columns))
        objective = Imitation(job.task, kind, self.temperature, self.alpha, self.hidden)
        return replace(
            job, tables=job.tables | {"train": TokenTable.concatenate(parts)}, objectives=job.objectives | {OBJECTIVE: objective}
        )

    def _ask(
        self, sources: list[str], job: Job, student: PreTrainedModel, splits: list[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
        """By split: the mean of what the teachers answer, float32 (rows, labels), and that of their states' directions."""
        kind, layers = str(student.config.problem_type), _depth(student) if self.hidden else 0
        sums: dict[str, list[np.ndarray]] = {}
        for source in sources:  # one after the other: large ones need not fit beside each other
            teacher = Teacher.open(source, student)
            if self.hidden:
                _check_states(teacher.model, source)
                _check_widths(width(teacher.model), width(student), source)
            for split in splits:
                logits, states = teacher.answer(job, split, layers)
                one = [answers(logits, kind, self.temperature)] + ([] if states is None else [states])
                sums[split] = [a + b for a, b in zip(sums[split], one, strict=True)] if split in sums else one
        found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for split, parts in sums.items():
            means = [part / np.float32(len(sources)) for part in parts]
            found[split] = means[0], _directions(means[1]) if layers else None
        return found

    def next_phase(self, state: State, view: View) -> Phase | None:
        if self.teacher is None:
            return super().next_phase(state, view)
        return None if state.finished else Phase(objective=OBJECTIVE)


def _show_states(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """While something is learned, the states of all layers are among the outputs."""
    return arguments, named | ({"output_hidden_states": True} if torch.is_grad_enabled() else {})


def answers(logits: np.ndarray, kind: str, temperature: float) -> np.ndarray:
    """Logits (rows, labels) as what can be averaged, float32 of the same shape: probabilities at a temperature; of a regression
    the numbers themselves."""
    if kind == "regression":
        return logits
    wide = logits.astype(np.float64) / temperature
    return (expit(wide) if kind == "multi_label_classification" else softmax(wide, -1)).astype(np.float32)


@dataclass(frozen=True)
class Imitation:
    """What a student learns: the task's own loss over rows with a label, weighed by 1 - `alpha`; the distance to the teachers'
    answers over all rows, weighed by `alpha`; and that to their states, weighed by `hidden`.

    A batch also holds `target_soft` (float32, (rows, labels)), `target_hard` (bool, (rows,): whether a row has a label) and
    perhaps `target_states` (float32, (rows, layers, width)).
    """

    task: Task
    kind: str
    temperature: float
    alpha: float
    hidden: float

    def loss_options(self, training: TrainingConfig, train: TokenTable) -> LossOptions:
        return self.task.loss_options(training, train.select(np.flatnonzero(train.dense["target_hard"])))

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Of the task's own terms those of all rows, labelled or not, so that a labelled row weighs the same however few of
        them stand in a window; answers in `soft`; rows in `hidden`."""
        soft = batch["target_soft"]
        rows, labelled = float(len(soft)), float(batch["target_hard"].sum())
        own = self.task.counts(_labelled(batch), options)
        own = {name: count * rows / labelled if labelled else 1.0 for name, count in own.items()}
        return own | {"rows": rows, "soft": float(soft.numel()) if self._by_label else rows, "hidden": rows}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Sums (fp32, shape ()) by term: the task's own, `soft` and `hidden`."""
        logits = outputs.logits.float()
        own = self.task.loss(SimpleNamespace(logits=logits[batch["target_hard"]]), _labelled(batch), options)
        terms = {name: (1 - self.alpha) * value for name, value in own.items()}
        terms["soft"] = self.alpha * self.soft(logits, batch["target_soft"])
        if self.hidden:
            wanted = batch["target_states"]
            found = layer_directions(outputs, batch["attention_mask"], wanted.shape[1])
            terms["hidden"] = self.hidden * (found - wanted).square().sum(-1).mean(-1).sum()
        return terms

    def soft(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Summed divergence from the teachers' probabilities, times the squared temperature, so that gradients keep their size;
        of a regression the squared distance. `logits` and `wanted` are of shape (rows, labels)."""
        if self.kind == "regression":
            return (logits - wanted).square().sum()
        scaled = logits / self.temperature
        if self._by_label:
            least = (torch.special.entr(wanted) + torch.special.entr(1 - wanted)).sum()
            found = F.binary_cross_entropy_with_logits(scaled, wanted, reduction="sum") - least
        else:
            found = F.kl_div(scaled.log_softmax(-1), wanted, reduction="sum")
        return self.temperature**2 * found

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        return {}

    @property
    def _by_label(self) -> bool:
        return self.kind == "multi_label_classification"


def _labelled(batch: Batch) -> Mapping[str, torch.Tensor]:
    labels = batch["labels"]
    return {"labels": labels[batch["target_hard"].to(labels.device)]}


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12).astype(np.float32)


def _depth(model: PreTrainedModel) -> int:
    return int(encoder_config(model.config).num_hidden_layers)


def _check_states(model: Any, name: str) -> None:
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(whole, EncoderHeadForSequenceClassification):
        raise UserError(
            f"strategy.hidden: {name} has a head of the toolkit's own, which shows no states of single layers; allowed: 0, or "
            "task.head: family"
        )
    if is_encoder_decoder(whole):
        raise UserError(
            f"strategy.hidden: {name} is a {whole.config.model_type} model, an encoder with a decoder, whose states are not "
            "compared; allowed: 0"
        )


def _check_widths(teacher: int, student: int, name: str) -> None:
    if teacher != student:
        raise UserError(
            f"strategy.hidden: the states of {name} are {teacher} wide, the student's {student}; allowed: 0, or a teacher of the "
            "student's width"
        )

"""Teachers for distillation: load fine-tuned models and compute their predictions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.models.cached_features import compute_in_batches
from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.models.heads import pool
from nlp_transfer.models.layers import new_parameters, width
from nlp_transfer.models.preparation import autocast
from nlp_transfer.models.regression_output import standardized_outputs
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Task, encode_table
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, prefixed, shorten

MAX_DISTANCE = 3.0  # from the mean prediction of a teacher to the mean of train, in standard deviations; a larger one is reported
SETTING = "strategy.teacher"


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned model that the student is trained to imitate.

    Attributes:
        order: Index of each student label among the teacher's labels, int64 of shape (labels,).
    """

    name: str
    model: Any
    checkpoint: Checkpoint
    order: np.ndarray

    @classmethod
    def open(cls, source: str, student: PreTrainedModel) -> "Teacher":
        """Load a teacher.

        Raises:
            UserError: If the model does not exist, was not fine-tuned, or has other labels than the student.
        """
        with prefixed(SETTING):
            checkpoint = Checkpoint.open(find_model(source))
            _ = checkpoint.tokenizer  # loaded here so that an error message names the setting
            check_head(checkpoint)
            model = checkpoint.load(AutoModelForSequenceClassification)
        if missing := sorted(new_parameters(model)):
            raise UserError(f"{SETTING}: {source} has no weights for {missing[0]}; allowed: a model that was fine-tuned")
        return cls(source, model.eval(), checkpoint, _label_order(source, model.config, student.config))

    def predict(self, job: Job, split: str, layers: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """Predict the rows of a split, with the tokenizer and maximum length of the teacher.

        Args:
            layers: Number of layers for which to return hidden states. It is the number of layers of the student. 0: none.

        Returns:
            Logits in the label order of the student, float32 of shape (rows, labels); and `layer_directions`, float32 of shape
            (rows, layers, width), or None.
        """
        record = self._record()
        saved = {"max_length": self._max_length(record), "offset": self._offset(record)}
        task: Task = job.task.model_copy(
            update={name: value for name, value in saved.items() if name in type(job.task).model_fields}
        )
        task = task.prepare(self.checkpoint)
        task.connect(self.model)  # for regression: predict in the units of the student
        table = encode_table(task, job.rows[split], self.checkpoint.tokenizer, targets=False)
        precision = "bf16" if job.precision == "bf16" else "fp32"  # not fp16: a teacher of another family may overflow

        def compute(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            inputs = {name: tensor.to(job.device) for name, tensor in model_inputs(table.batch(rows)).items()}
            with torch.inference_mode(), autocast(job.device, precision), standardized_outputs(self.model):
                outputs = self.model(**inputs, **({"output_hidden_states": True} if layers else {}))
            logits = outputs.logits.float().cpu().numpy()[:, self.order]
            if not layers:
                return logits, None
            return logits, layer_directions(outputs, inputs["attention_mask"], layers).cpu().numpy()

        self.model.to(job.device)
        logits = np.empty((len(table), len(self.order)), np.float32)
        states = np.empty((len(table), layers, width(self.model)), np.float32) if layers else None
        for rows, (batch_logits, directions) in compute_in_batches(table, compute, f"predicting {split} with {self.name}"):
            logits[rows] = batch_logits
            if states is not None:
                states[rows] = directions
        if job.task.traits.prediction == "number" and (distance := abs(float(logits.mean()))) > MAX_DISTANCE:
            say(
                f"warning: on {split} {self.name} predicts {distance:.3g} standard deviations away from the mean of train; was "
                "it trained on a column of the same units?"
            )
        return logits, states

    def _record(self) -> dict[str, Any]:
        """Return the contents of the teacher's `nlp_transfer.json`, or an empty document."""
        with prefixed(SETTING):
            return self.checkpoint.record

    def _offset(self, record: dict[str, Any]) -> float | None:
        """Return the output bias of a regression in full precision. None: it is not recorded, so use the bias in the weights."""
        settings = record.get("settings")
        offset = settings.get("offset") if isinstance(settings, dict) else None
        if offset is not None and (not isinstance(offset, float) or not math.isfinite(offset)):
            raise UserError(f"{SETTING}: {self.name}: {RECORD}: found offset: {shorten(offset)}; allowed: a number")
        return offset

    def _max_length(self, record: dict[str, Any]) -> int | None:
        """Return the maximum length that the teacher was trained with. None: unknown."""
        length = record.get("max_length")
        limit = self.checkpoint.max_length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= limit):
            place = Path(self.checkpoint.source.path, RECORD)
            raise UserError(f"{SETTING}: {place}: found max_length: {shorten(length)}; allowed: 1 to {limit}")
        return length


def layer_directions(outputs: Any, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """Return the hidden states of evenly spaced layers, the last one included. Average each over tokens and scale it to length 1.

    Args:
        mask: The attention mask, shape (rows, tokens).
        layers: Number of layers to return.

    Returns:
        float32 of shape (rows, layers, width).
    """
    depth = len(outputs.hidden_states) - 1  # the first element is the output of the embeddings
    chosen = [outputs.hidden_states[round(i * depth / layers)] for i in range(1, layers + 1)]
    return torch.nn.functional.normalize(torch.stack([pool(states.float(), mask, "mean") for states in chosen], 1), dim=-1)


def _label_order(source: str, teacher: Any, student: Any) -> np.ndarray:
    """Return the index of each student label among the teacher's labels.

    Raises:
        UserError: If the labels or the problem types differ.
    """
    if teacher.problem_type and teacher.problem_type != student.problem_type:
        raise UserError(
            f"{SETTING}: {source} was trained for {teacher.problem_type}, the student for {student.problem_type}; "
            "allowed: the same"
        )
    required, existing = ([str(config.id2label[i]) for i in range(config.num_labels)] for config in (student, teacher))
    if student.problem_type == "regression" and len(existing) == 1:
        return np.zeros(1, np.int64)  # the single label is the name of a column
    position = {name: i for i, name in enumerate(existing)}
    student_labels = set(required)
    missing = [name for name in required if name not in position]
    extra = [name for name in existing if name not in student_labels]
    if missing or extra:
        differences = [f"{verb} {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}"
                 for verb, names in (("does not know", missing), ("also knows", extra)) if names]  # fmt: skip
        raise UserError(
            f"{SETTING}: {source} {' and '.join(differences)}; allowed: a teacher with the labels of the task, in any order"
        )
    return np.array([position[name] for name in required], np.int64)

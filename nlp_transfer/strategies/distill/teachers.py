"""Teachers: finished models whose answers another one learns."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlp_transfer.data.sources import find_model
from nlp_transfer.data.tokens import encode_rows, model_inputs
from nlp_transfer.models.cached_features import in_batches
from nlp_transfer.models.checkpoint import Checkpoint, autocast, check_head, new_parameters, width
from nlp_transfer.models.heads import pool
from nlp_transfer.strategies import Job
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError, shorten

FAR = 3.0  # standard deviations between the mean of a teacher's numbers and that of train
SETTING = "strategy.teacher"
RECORD = "nlp_transfer.json"


@dataclass(frozen=True)
class Teacher:
    """A finished model. `order` says at which place (int64, (labels,)) each of the student's labels stands among its own."""

    name: str
    model: Any
    checkpoint: Checkpoint
    order: np.ndarray

    @classmethod
    def open(cls, source: str, student: PreTrainedModel) -> "Teacher":
        """Raises a UserError where there is no such model, where it was not fine-tuned, or where its labels are others."""
        try:
            checkpoint = Checkpoint.open(find_model(source))
            _ = checkpoint.tokenizer  # whether there is one is seen here, where the setting is named
            check_head(checkpoint)
            model = checkpoint.load(AutoModelForSequenceClassification)
        except UserError as error:
            raise UserError(f"{SETTING}: {str(error).removeprefix('model: ')}") from error
        if missing := sorted(new_parameters(model)):
            raise UserError(f"{SETTING}: {source} has no weights for {missing[0]}; allowed: a model that was fine-tuned")
        return cls(source, model.eval(), checkpoint, _label_order(source, model.config, student.config))

    def answer(self, job: Job, split: str, layers: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits for the rows of a split, float32 (rows, labels), in the student's order of labels; with `layers` also as many
        states of its own, spread evenly over its depth, averaged over tokens, of length 1: float32 (rows, layers, width).

        The rows are cut into the teacher's tokens, as long as those that it was trained with.
        """
        record = self._record()
        learned = {"max_length": self._max_length(record), "offset": self._offset(record)}
        task: Task = job.task.model_copy(update={name: value for name, value in learned.items() if hasattr(job.task, name)})
        task = task.restore(self.checkpoint)
        task.connect(self.model)  # a regression answers in the student's standardized values, whatever the teacher learned from
        tokenizer = self.checkpoint.tokenizer
        table = encode_rows(job.rows[split], partial(task.encode, tokenizer=tokenizer, targets=False), task.fill(tokenizer))
        precision = "bf16" if job.precision == "bf16" else "fp32"  # in fp16 a teacher of another family may overflow

        def compute(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
            inputs = {name: tensor.to(job.device) for name, tensor in model_inputs(table.batch(rows)).items()}
            with torch.inference_mode(), autocast(job.device, precision), task.computing(self.model):
                outputs = self.model(**inputs, **({"output_hidden_states": True} if layers else {}))
            logits = outputs.logits.float().cpu().numpy()[:, self.order]
            if not layers:
                return logits, None
            return logits, layer_directions(outputs, inputs["attention_mask"], layers).cpu().numpy()

        self.model.to(job.device)
        logits = np.empty((len(table), len(self.order)), np.float32)
        states = np.empty((len(table), layers, width(self.model)), np.float32) if layers else None
        for rows, (found, directions) in in_batches(table, compute, f"asking {self.name} about {split}"):
            logits[rows] = found
            if states is not None:
                states[rows] = directions
        if job.task.prediction_kind == "number" and (distance := abs(float(logits.mean()))) > FAR:
            say(
                f"warning: on {split} {self.name} predicts {distance:.3g} standard deviations away from the mean of train; was "
                "it trained on a column of the same units?"
            )
        return logits, states

    def _record(self) -> dict[str, Any]:
        """What a file beside the teacher says of it; nothing where there is none."""
        try:
            return self.checkpoint.record
        except UserError as error:
            raise UserError(f"{SETTING}: {error}") from error

    def _offset(self, record: dict[str, Any]) -> float | None:
        """The bias of a regression's output layer in full precision; null: the one among its weights."""
        settings = record.get("settings")
        found = settings.get("offset") if isinstance(settings, dict) else None
        if found is not None and (not isinstance(found, float) or not math.isfinite(found)):
            raise UserError(f"{SETTING}: {self.name}: {RECORD}: found offset: {shorten(found)}; allowed: a number")
        return found

    def _max_length(self, record: dict[str, Any]) -> int | None:
        """What the teacher was trained with, where its record says so; null: what its tokenizer takes, at most 512."""
        found = record.get("max_length")
        limit = self.checkpoint.max_length
        if found is not None and (not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= limit):
            place = Path(self.checkpoint.source.path, RECORD)
            raise UserError(f"{SETTING}: {place}: found max_length: {shorten(found)}; allowed: 1 to {limit}")
        return found


def layer_directions(outputs: Any, mask: torch.Tensor, layers: int) -> torch.Tensor:
    """States of `layers` layers spread evenly over those of a model, the last one among them, averaged over the real tokens and
    scaled to length 1: float32 (rows, layers, width). `mask` (rows, tokens) is 1 where a token is real."""
    depth = len(outputs.hidden_states) - 1  # the embeddings stand first
    chosen = [outputs.hidden_states[round(i * depth / layers)] for i in range(1, layers + 1)]
    return torch.nn.functional.normalize(torch.stack([pool(states.float(), mask, "mean") for states in chosen], 1), dim=-1)


def _label_order(source: str, teacher: Any, student: Any) -> np.ndarray:
    """Raises a UserError where the labels, or what is learned about them, are not the same."""
    if teacher.problem_type and teacher.problem_type != student.problem_type:
        raise UserError(
            f"{SETTING}: {source} was made for {teacher.problem_type}, the student learns {student.problem_type}"
            "; allowed: the same"
        )
    wanted, found = ([str(config.id2label[i]) for i in range(config.num_labels)] for config in (student, teacher))
    if student.problem_type == "regression" and len(found) == 1:
        return np.zeros(1, np.int64)  # its only output is called after a column
    position = {name: i for i, name in enumerate(found)}
    known = set(wanted)
    missing, more = [name for name in wanted if name not in position], [name for name in found if name not in known]
    if missing or more:
        parts = [f"{what} {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}"
                 for what, names in (("does not know", missing), ("also knows", more)) if names]  # fmt: skip
        raise UserError(
            f"{SETTING}: {source} {' and '.join(parts)}; allowed: a teacher with the labels of the task, in any order"
        )
    return np.array([position[name] for name in wanted], np.int64)

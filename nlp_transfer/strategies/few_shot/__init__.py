"""Few-shot learning: contrastive training of a sentence encoder, then a classification head.

When to use it: with a few to a few hundred labeled rows, and a sentence encoder as the model.

Cost: as full fine-tuning for some hundred steps; contrastive training encodes about 4,000 texts.

Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts" (SetFit), 2209.11055, train on pairs of rows, which are
similar if they share a label, and then fit a logistic regression. Here all rows of a group are compared with each other, so that
a text is encoded once for many pairs. The default loss is a softmax over the group (Khosla et al. 2020, 2004.11362) instead of
SetFit's squared error.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.sources.rows import from_columns
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, HeadConfig
from nlp_transfer.models.layers import has_decoder
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.schema import Name, Positive, TrainingConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Group, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.label_words import describe_labels
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, plain_name, scale_head
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression, last_linear, layer_inputs
from nlp_transfer.strategies.common.nearest_mean import leave_one_out_accuracy, write_prototypes
from nlp_transfer.strategies.few_shot.contrastive_groups import ContrastiveObjective, GroupTable
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

COMPARED_TEXTS = 4000  # number of texts encoded in contrastive training, by default
GOOD_ACCURACY = 0.5  # of the nearest class mean; above it contrastive training makes the vectors worse
MIN_STEPS = 200  # optimizer steps with few rows, by default
HEAD_SETTINGS = "epochs label_smoothing class_weights focal_gamma oversample augment early_stopping best_metric".split()
PAIRS_SCALE = 0.25  # factor on the learning rate; at the full rate the encoder forgets its pretraining


class FewShot(Strategy):
    """Train the encoder on groups of rows if its vectors need it (phase `pairs`, where each row of a batch is a group), then a
    head.

    The head starts at the nearest class mean and is trained together with the encoder, or is a logistic regression.
    """

    compare: Annotated[Literal["contrastive", "cosine"], UsedWith(epochs=Not(0))] = "contrastive"
    """Loss on groups of rows: supervised contrastive, or the squared error of cosines, as in SetFit."""
    temperature: Annotated[Positive, UsedWith(compare="contrastive", epochs=Not(0))] = 0.07
    """Contrastive: temperature, which divides the cosines."""
    group: Annotated[Annotated[int, Field(ge=4, le=256)] | Literal["auto"], UsedWith(epochs=Not(0))] = "auto"
    """Number of rows in a group. auto: as many as give 64 texts per process and micro-batch, from 4 to 32."""
    epochs: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Epochs of contrastive training. 0: none. auto: none if the nearest class mean already classifies half of the training rows
    correctly (leave-one-out), as with most sentence encoders; otherwise 1 to 10, until 4,000 texts are encoded."""
    learn_labels: bool = True
    """Add the description of each label as a training row, if rows are single texts and labels are words."""
    labels: Annotated[dict[str, Name], UsedWith(learn_labels=True)] = {}
    """Descriptions of labels. The default is the label's name, with spaces instead of underscores."""
    classifier: Literal["trained", "logistic_regression"] = "trained"
    """The head. `trained`: together with the encoder, for `training.epochs`, starting from the mean vector of each label.
    `logistic_regression`: fitted to the vectors."""
    regularization: Annotated[Positive, UsedWith(classifier="logistic_regression")] = 0.1
    """Strength of the L2 penalty of logistic regression, the inverse of scikit-learn's `C`. The vectors have length 1."""

    def unused(self, task: Task) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if len(task.input_columns()) > 1 or task.prediction_kind == "number":
            reasons |= dict.fromkeys(
                ("strategy.learn_labels", "strategy.labels"), "descriptions of labels cannot be training rows here"
            )
        if self.classifier == "logistic_regression":
            reason = (
                "few_shot fits its logistic regression without optimizer steps; strategy.epochs is for the contrastive training"
            )
            reasons |= {f"training.{name}": reason for name in HEAD_SETTINGS}  # used by a trained head only
        return reasons

    def always_used(self) -> set[str]:
        return {"training.batch_size"}  # the group size depends on it, even with `batch_tokens`

    def learning_rate(self, model: nn.Module) -> float:
        """Return a lower rate than in full fine-tuning, since the head starts at the class means."""
        return 0.7 * super().learning_rate(model)

    def default_model(self) -> str:
        return SENTENCE_MODEL

    def preferred_head(self) -> HeadConfig:
        """Return mean pooling, normalized to length 1, since contrastive training learns cosines."""
        return HeadConfig(pooling="mean", normalize=True)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, HEAD_SCALE)

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check the model.

        Raises:
            UserError: If the model generates text or has no vector of a text to compare, or logistic regression is to fit a head
                with hidden layers.
        """
        if has_decoder(model):
            raise UserError(
                "strategy.name: found few_shot with a task that predicts texts; allowed: a task with labels or numbers"
            )
        if hasattr(model, "peft_config"):
            raise UserError("strategy: found an adapter before few_shot; allowed: few_shot first, then the adapter")
        if not isinstance(model, EncoderHeadForSequenceClassification):
            raise UserError(
                "task.head: found family; few_shot compares mean vectors of texts, but this head reads the first token or is "
                "built by the task; allowed: null, or a head such as {pooling: mean, normalize: true}"
            )
        if self.classifier == "logistic_regression":
            last_linear(model, "strategy.classifier: found logistic_regression")
            if model.config.problem_type == "regression":
                raise UserError("strategy.classifier: found logistic_regression; a regression has no classes; allowed: trained")
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Add the table of groups.

        Raises:
            UserError: If features are cached, which training could not change, or logistic regression is combined with averaged
                weights.
        """
        if job.tables["train"].cached:
            raise UserError(
                "strategy: found few_shot after a strategy that caches features, which contrastive training could not change; "
                "allowed: one of the two, or strategy.cache: none"
            )
        if self.classifier == "logistic_regression" and job.training.ema is not None:
            raise UserError(
                f"training.ema: found {job.training.ema}; few_shot fits its logistic regression to the last weights, not to "
                "their average; allowed: null, or strategy.classifier: trained"
            )
        job = replace(job, training=self._default_training(job), tables=job.tables | {"train": self._with_labels(job)})
        table = job.tables["train"]
        size = min(32, max(4, 64 // job.training.rows)) if isinstance(self.group, str) else self.group
        size = min(size, len(table))
        epochs = self._contrastive_epochs(job, model, table) if isinstance(self.epochs, str) else self.epochs
        groups = GroupTable.over(table, math.ceil(epochs * len(table) / size), size, job.training.seed)
        pairs = {"pairs": ContrastiveObjective(self.compare, self.temperature)}
        return replace(job, tables=job.tables | {"pairs": groups}, objectives=job.objectives | pairs)

    def _contrastive_epochs(self, job: Job, model: PreTrainedModel, table: TokenTable) -> float:
        labels = table.dense["labels"]
        if labels.dtype == np.int64 and not getattr(model.config, "hidden", None):
            model.to(job.device)  # type: ignore[arg-type]
            layer = last_linear(model, "")
            accuracy = leave_one_out_accuracy(layer_inputs(model, layer, table).astype(np.float64), labels, layer.out_features)
            if accuracy >= GOOD_ACCURACY:
                say(f"no contrastive training: the nearest class mean already classifies {accuracy:.0%} of train correctly")
                return 0.0
        return min(10.0, max(1.0, COMPARED_TEXTS / len(table)))

    def _default_training(self, job: Job) -> TrainingConfig:
        """Return the training settings, with defaults of its own for `auto`.

        The run is shorter, since the head starts near its optimum, and has no label smoothing, since logits of vectors of length
        1 stay small.
        """
        training, steps = job.training, max(1, len(job.tables["train"]) // job.training.rows)
        defaults: dict[str, Any] = {"epochs": float(min(20, max(3, math.ceil(MIN_STEPS / steps)))), "label_smoothing": 0.0}
        return training.model_copy(update={name: value for name, value in defaults.items() if getattr(training, name) == "auto"})

    def _with_labels(self, job: Job) -> TokenTable:
        """Return the training table, with a row for each label whose description contains a letter."""
        table, task = job.tables["train"], job.task
        names: list[str] = getattr(task, "labels", None) or []
        descriptions = describe_labels(names, self.labels, "strategy.labels")
        rows = [(text, name) for text, name in zip(descriptions, names, strict=True) if any(letter.isalpha() for letter in text)]
        if not self.learn_labels or len(task.input_columns()) > 1 or not rows:
            return table
        columns: dict[str, list[Any]] = {task.input_columns()[0]: [text for text, _ in rows]}
        columns[task.target_columns()[0]] = [name if table.dense["labels"].ndim == 1 else [name] for _, name in rows]
        return TokenTable.concatenate([table, job.encode(from_columns(columns, "strategy.labels"))])

    def next_phase(self, state: State, view: View) -> Phase | None:
        model, train = view.model, view.tables["train"]
        # Recorded before the first phase: later, parameters frozen by a phase look like those frozen by another strategy.
        trainable = state.memory.setdefault(
            "free", [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        )
        encoder = tuple(name for name in trainable if not plain_name(name).startswith("classifier."))
        if not state.finished and len(view.tables["pairs"]) and encoder:
            return Phase(
                "pairs",
                "pairs",
                trainable=encoder,
                epochs=1.0,
                following=int(self.classifier == "trained"),
                learning_rate_scale=PAIRS_SCALE,
                evaluate=False,
                objective="pairs",
            )
        if self.classifier == "logistic_regression":
            fit_logistic_regression(model, train, self.regularization)
            return None
        if "train" in state.finished:
            return None
        has_labels = train.dense["labels"].ndim == 2 or train.dense["labels"].dtype == np.int64
        if has_labels and not getattr(model.config, "hidden", None):
            write_prototypes(model, train, "strategy.name: found few_shot")
        return Phase("train", trainable=tuple(trainable), keep_optimizer=False)

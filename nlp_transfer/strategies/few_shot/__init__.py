"""Few-shot learning: contrastive training of a sentence encoder, followed by training of a classification head.

When to use it: with at most a few hundred labeled rows and a sentence encoder.

Cost: that of a few hundred steps of full fine-tuning. Contrastive training encodes about 4,000 texts.

Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts" (SetFit), 2209.11055, train on pairs of rows, which count as
similar if they share a label, and then fit a logistic regression. This strategy compares all pairs in a group of rows, so each
text is encoded only once for many pairs. The default loss is a softmax over the group (Khosla et al. 2020, 2004.11362) instead
of SetFit's squared error.
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
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.base_settings import Name, Positive
from nlp_transfer.settings.schema import DataConfig, TrainingConfig
from nlp_transfer.strategies import (
    SENTENCE_MODEL,
    Group,
    Job,
    Phase,
    State,
    Strategy,
    StrategyTraits,
    View,
    default_learning_rate,
)
from nlp_transfer.strategies.common.label_words import describe_labels
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, plain_name, scale_head
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression, last_linear, layer_inputs
from nlp_transfer.strategies.common.nearest_mean import leave_one_out_accuracy, write_prototypes
from nlp_transfer.strategies.few_shot.contrastive_groups import ContrastiveObjective, GroupTable
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError

COMPARED_TEXTS = 4000  # default number of texts to encode in contrastive training
GOOD_ACCURACY = 0.5  # if the nearest-mean classifier is at least this accurate, contrastive training degrades the vectors
MIN_STEPS = 200  # default minimum number of optimizer steps
HEAD_SETTINGS = "epochs label_smoothing class_weights focal_gamma oversample augment early_stopping best_metric".split()
PAIRS_SCALE = 0.25  # factor on the learning rate of contrastive training, to avoid forgetting


class FewShot(Strategy):
    """If necessary, train the encoder on groups of rows (phase `pairs`). Then train a classifier.

    The head is initialized as a nearest-mean classifier and trained together with the encoder, or it is a logistic regression.
    """

    traits = StrategyTraits(
        needs_task="vector",
        owns_phases=True,
        uses_weights=False,
        always_used=frozenset({"training.batch_size"}),  # the group size depends on it, even with `batch_tokens`
        default_model=SENTENCE_MODEL,
        head=HeadConfig(pooling="mean", normalize=True),  # contrastive training compares cosines
        # Lower than in full fine-tuning, since the head starts as a nearest-mean classifier.
        learning_rate=lambda model: 0.7 * default_learning_rate(model),
        search_space={
            "strategy.epochs": ["auto", 0.0, 1.0, 3.0],
            "strategy.learn_labels": [True, False],
        },
        classes_space={
            "strategy.classifier": ["trained", "logistic_regression"],
            "strategy.regularization": {"low": 0.001, "high": 10.0, "log": True},
        },
    )

    compare: Annotated[Literal["contrastive", "cosine"], UsedWith(epochs=Not(0))] = "contrastive"
    """Loss on groups of rows: the supervised contrastive loss, or the squared error of cosines as in SetFit."""
    temperature: Annotated[Positive, UsedWith(compare="contrastive", epochs=Not(0))] = 0.07
    """With `compare: contrastive`, the number by which cosines are divided before the softmax."""
    group: Annotated[Annotated[int, Field(ge=4, le=256)] | Literal["auto"], UsedWith(epochs=Not(0))] = "auto"
    """Number of rows in a group. auto: 4 to 32, chosen so that a micro-batch of a process contains 64 texts."""
    epochs: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Epochs of contrastive training. auto: 0 if the nearest-mean classifier has a leave-one-out accuracy of at least 0.5 on
    the training rows, which is the case for most sentence encoders; otherwise 1 to 10, chosen so that 4,000 texts are
    encoded."""
    learn_labels: bool = True
    """Add the description of each label as a training row, if the input is a single text and labels contain letters."""
    labels: Annotated[dict[str, Name], UsedWith(learn_labels=True)] = {}
    """Description of each label. Default: the name of the label, with underscores replaced by spaces."""
    classifier: Literal["trained", "logistic_regression"] = "trained"
    """How to compute the head. `trained`: start from the mean vector of each label, and train it together with the encoder for
    `training.epochs`. `logistic_regression`: fit it to the vectors with scikit-learn."""
    regularization: Annotated[Positive, UsedWith(classifier="logistic_regression")] = 0.1
    """Strength of the L2 penalty of logistic regression: 1 / `C` in scikit-learn. With the default head, the regression
    is fitted to vectors of length 1."""

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        if len(task.inputs) > 1 or task.traits.prediction == "number":
            for name in ("learn_labels", "labels"):
                problems.no_effect(f"strategy.{name}", "only classification of single texts can train on descriptions of labels")
        if self.classifier == "logistic_regression":
            reason = (
                "few_shot fits its logistic regression without optimizer steps; for contrastive training, set strategy.epochs"
            )
            for name in HEAD_SETTINGS:  # only a trained head uses them
                problems.no_effect(f"training.{name}", reason)
        return task

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, HEAD_SCALE)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Check the model.

        Raises:
            UserError: If the model does not compute text vectors, or `classifier` is not possible with the head.
        """
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
        """Add the table of groups for contrastive training.

        Raises:
            UserError: If another strategy caches features, or logistic regression is combined with averaged weights.
        """
        if job.tables["train"].cached:
            raise UserError(
                "strategy: found few_shot after a strategy that caches features; contrastive training cannot change those; "
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
        """Return the training settings, with the defaults of this strategy for `auto` values.

        By default there are fewer epochs than usual, since the head starts near its optimum, and there is no label smoothing,
        since vectors of length 1 give small logits.
        """
        training, steps = job.training, max(1, len(job.tables["train"]) // job.training.rows)
        defaults: dict[str, Any] = {"epochs": float(min(20, max(3, math.ceil(MIN_STEPS / steps)))), "label_smoothing": 0.0}
        return training.model_copy(update={name: value for name, value in defaults.items() if getattr(training, name) == "auto"})

    def _with_labels(self, job: Job) -> TokenTable:
        """Return the training table with the label descriptions as additional rows. Descriptions without letters are omitted."""
        table, task = job.tables["train"], job.task
        names = list(task.scorer.labels)
        descriptions = describe_labels(names, self.labels, "strategy.labels")
        rows = [(text, name) for text, name in zip(descriptions, names, strict=True) if any(letter.isalpha() for letter in text)]
        if not self.learn_labels or len(task.inputs) > 1 or not rows:
            return table
        columns: dict[str, list[Any]] = {task.inputs[0]: [text for text, _ in rows]}
        columns[task.targets[0]] = [name if table.dense["labels"].ndim == 1 else [name] for _, name in rows]
        return TokenTable.concatenate([table, job.encode(from_columns(columns, "strategy.labels"))])

    def next_phase(self, state: State, view: View) -> Phase | None:
        model, train = view.model, view.tables["train"]
        # Recorded before the first phase, when this strategy has not frozen any parameters yet.
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

"""Few rows with labels: the encoder learns from comparing rows with each other, of which there are far more than rows.

Tunstall et al. 2022, "Efficient Few-Shot Learning Without Prompts" (SetFit), 2209.11055: pairs of rows, alike where they share
a label, then a logistic regression. Here groups of rows are compared all with all, so that a text is encoded once for many
pairs, and by default a softmax over the group stands in for SetFit's squared errors (Khosla et al. 2020, 2004.11362).
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
from nlp_transfer.models.checkpoint import has_decoder
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, HeadConfig
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.schema import Name, Positive, TrainingConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Group, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.label_words import describe_labels
from nlp_transfer.strategies.common.layer_depth import HEAD_SCALE, plain_name, scale_head
from nlp_transfer.strategies.common.linear_heads import fit_logistic_regression, last_linear, layer_inputs
from nlp_transfer.strategies.common.nearest_mean import leave_one_out_accuracy, write_prototypes
from nlp_transfer.strategies.few_shot.contrastive_groups import Comparison, GroupTable
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError

TEXTS = 4000  # by default as many are encoded for comparison, or each row four times
CLEAR = 0.5  # share of train that means answer, from which on comparing rows makes vectors worse rather than better
STEPS = 200  # optimiser steps that few rows are trained for, where the settings do not say
OF_THE_HEAD = "epochs label_smoothing class_weights focal_gamma oversample augment early_stopping best_metric".split()
PAIRS_SCALE = 0.25  # of the learning rate: at the full one vectors forget what they were pretrained for


class FewShot(Strategy):
    """Contrastive tuning of the encoder on groups of train's rows, where vectors need it (phase `pairs`; a row of a batch is a
    group there), then a head on its vectors: trained with the encoder, from the nearest means on, or fitted by logistic
    regression."""

    compare: Annotated[Literal["contrastive", "cosine"], UsedWith(epochs=Not(0))] = "contrastive"
    """How rows are compared: by picking rows alike out of a group, or by the squared error of cosines, as in SetFit."""
    temperature: Annotated[Positive, UsedWith(compare="contrastive", epochs=Not(0))] = 0.07
    """Contrastive: what cosines are divided by."""
    group: Annotated[Annotated[int, Field(ge=4, le=256)] | Literal["auto"], UsedWith(epochs=Not(0))] = "auto"
    """Rows that are compared all with all; auto: as many as make 64 texts a process and micro-batch, from 4 to 32."""
    epochs: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """How often each row is compared in a group, 0: never; auto: not at all where the nearest means answer half of train already
    (each row left out in turn), as they do on models of whole sentences; else until 4000 texts were encoded, at most 10 times
    and at least once."""
    learn_labels: bool = True
    """Whether each label's words are a row of train too, where a row is a single text and labels are words."""
    labels: Annotated[dict[str, Name], UsedWith(learn_labels=True)] = {}
    """What labels mean, in words; others are described by their names, with spaces for underscores."""
    classifier: Literal["trained", "logistic_regression"] = "trained"
    """The head: trained together with the encoder, for `training.epochs`, starting from the mean vector of each label; or a
    logistic regression on the vectors."""
    regularization: Annotated[Positive, UsedWith(classifier="logistic_regression")] = 0.1
    """Strength of logistic regression's L2 penalty: the inverse of scikit-learn's `C`. Vectors are of length 1."""

    def unused(self, task: Task) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if len(task.input_columns()) > 1 or task.prediction_kind == "number":
            reasons |= dict.fromkeys(("strategy.learn_labels", "strategy.labels"), "labels in words are not rows of train here")
        if self.classifier == "logistic_regression":
            reason = "few_shot fits its logistic regression in one go, and compares rows for strategy.epochs before"
            reasons |= {f"training.{name}": reason for name in OF_THE_HEAD}  # which nothing but a trained head uses
        return reasons

    def always_used(self) -> set[str]:
        return {"training.batch_size"}  # how many rows are compared follows from it, also beside `batch_tokens`

    def learning_rate(self, model: nn.Module) -> float:
        """A head that starts from the means needs smaller steps than one that starts at random."""
        return 0.7 * super().learning_rate(model)

    def default_model(self) -> str:
        return SENTENCE_MODEL

    def preferred_head(self) -> HeadConfig:
        """The mean over all tokens, of length 1: cosines are what is learned, and what the head should see."""
        return HeadConfig(pooling="mean", normalize=True)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        return scale_head(model, groups, HEAD_SCALE)

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where the model writes text, or gives no vector of a text to compare, or a head of hidden layers is
        asked to be a logistic regression."""
        if has_decoder(model):
            raise UserError("strategy.name: found few_shot beside answers that are texts; allowed: a task with labels or numbers")
        if hasattr(model, "peft_config"):
            raise UserError("strategy: found an adapter before few_shot; allowed: few_shot first, then the adapter")
        if not isinstance(model, EncoderHeadForSequenceClassification):
            raise UserError(
                "task.head: found family; few_shot compares the vectors of whole texts, and a family's head sees what its pooler "
                "makes of the first token, as may one of a task that builds its model itself; allowed: null, or one such as "
                "{pooling: mean, normalize: true}"
            )
        if self.classifier == "logistic_regression":
            last_linear(model, "strategy.classifier: found logistic_regression")
            if model.config.problem_type == "regression":
                raise UserError("strategy.classifier: found logistic_regression; numbers are no classes; allowed: trained")
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Adds the table of groups.

        Raises:
            UserError: averaged weights are asked for, which nothing could fit a logistic regression to before the end; or a part
                of the model below the vectors was run before, once.
        """
        if job.tables["train"].cached:
            raise UserError(
                "strategy: few_shot behind a strategy that keeps what the encoder gave once, whose vectors no comparison could "
                "change; allowed: one of the two, or strategy.cache: none"
            )
        if self.classifier == "logistic_regression" and job.training.ema is not None:
            raise UserError(
                f"training.ema: found {job.training.ema}; few_shot fits its logistic regression to the weights as they were "
                "trained last; allowed: null, or strategy.classifier: trained"
            )
        job = replace(job, training=self._settled(job), tables=job.tables | {"train": self._with_labels(job)})
        table = job.tables["train"]
        size = min(32, max(4, 64 // job.training.rows)) if isinstance(self.group, str) else self.group
        size = min(size, len(table))
        epochs = self._passes(job, model, table) if isinstance(self.epochs, str) else self.epochs
        groups = GroupTable.over(table, math.ceil(epochs * len(table) / size), size, job.training.seed)
        pairs = {"pairs": Comparison(self.compare, self.temperature)}
        return replace(job, tables=job.tables | {"pairs": groups}, objectives=job.objectives | pairs)

    def _passes(self, job: Job, model: PreTrainedModel, table: TokenTable) -> float:
        labels = table.dense["labels"]
        if labels.dtype == np.int64 and not getattr(model.config, "hidden", None):
            model.to(job.device)  # type: ignore[arg-type]
            layer = last_linear(model, "")
            share = leave_one_out_accuracy(layer_inputs(model, layer, table).astype(np.float64), labels, layer.out_features)
            if share >= CLEAR:
                say(f"the nearest class means answer {share:.0%} of train already, so no rows are compared before")
                return 0.0
        return min(10.0, max(1.0, TEXTS / len(table)))

    def _settled(self, job: Job) -> TrainingConfig:
        """The training settings, with what is `auto` for other strategies as it is good here: steps enough, but fewer, since the
        head starts near its place; and targets as they are, since logits of vectors of length 1 never get extreme."""
        training, steps = job.training, max(1, len(job.tables["train"]) // job.training.rows)
        better: dict[str, Any] = {"epochs": float(min(20, max(3, math.ceil(STEPS / steps)))), "label_smoothing": 0.0}
        return training.model_copy(update={name: value for name, value in better.items() if getattr(training, name) == "auto"})

    def _with_labels(self, job: Job) -> TokenTable:
        """Train, and a row for each label whose description has a letter in it."""
        table, task = job.tables["train"], job.task
        names: list[str] = getattr(task, "labels", None) or []
        words = describe_labels(names, self.labels, "strategy.labels")
        rows = [(text, name) for text, name in zip(words, names, strict=True) if any(letter.isalpha() for letter in text)]
        if not self.learn_labels or len(task.input_columns()) > 1 or not rows:
            return table
        columns: dict[str, list[Any]] = {task.input_columns()[0]: [text for text, _ in rows]}
        columns[task.target_columns()[0]] = [name if table.dense["labels"].ndim == 1 else [name] for _, name in rows]
        return TokenTable.concatenate([table, job.encode(from_columns(columns, "strategy.labels"))])

    def next_phase(self, state: State, view: View) -> Phase | None:
        model, train = view.model, view.tables["train"]
        # Settled once: what a phase fixes looks no different later from what another strategy has fixed.
        free = state.memory.setdefault("free", [name for name, parameter in model.named_parameters() if parameter.requires_grad])
        encoder = tuple(name for name in free if not plain_name(name).startswith("classifier."))
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
        labelled = train.dense["labels"].ndim == 2 or train.dense["labels"].dtype == np.int64
        if labelled and not getattr(model.config, "hidden", None):
            write_prototypes(model, train, "strategy.name: found few_shot")
        return Phase("train", trainable=tuple(free), keep_optimizer=False)

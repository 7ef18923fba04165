"""Self-training: the model labels unlabelled text by itself, and learns from the answers it is sure of, in rounds.

Lee 2013, "Pseudo-Label"; Mukherjee and Awadallah 2020, "Uncertainty-aware Self-training for Few-shot Text Classification",
2006.15315, whose rounds these are: a teacher labels, a student that starts from the pretrained weights learns, and becomes the
next teacher. What counts as sure is decided class by class (Zhang et al. 2021, FlexMatch, 2110.08263): one threshold for all
would leave out the classes that are hard.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.models.checkpoint import has_decoder
from nlp_transfer.settings.schema import Count, Positive, Share
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.layer_depth import scale_mixed_head
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError


class SelfTraining(Strategy):
    """Rounds of training on train and on rows of `data.unlabelled` under the model's own predictions, which the best weights so
    far make."""

    rounds: Count = 2
    """How often unlabelled rows are labelled and learned from, after the first training on train alone."""
    confidence: Share = 0.5
    """Probability from which an answer may be learned from, in the class of which the model is surest; in the others the
    threshold is lower, by how sure it is of them on average."""
    share: Positive = 0.4
    """Share of the unlabelled rows that the last round may learn from; earlier rounds may in proportion, the surest first."""
    balance: bool = True
    """Keep the classes' shares as they are in train: of each class only so many rows join in. Else all sure rows do."""
    restart: bool = True
    """Begin each round from the weights that the first one began with; else go on from those of the round before."""

    def uses_unlabelled(self) -> bool:
        return True

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """As in full fine-tuning the head learns faster, unless another strategy of a list has set its rate."""
        return scale_mixed_head(model, groups)

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Raises a UserError where answers come without a probability."""
        if has_decoder(model) or model.config.problem_type == "regression":
            kind = "translation" if has_decoder(model) else "regression"
            raise UserError(
                f"strategy.name: found self_training; answers of a {kind} have no probability by which to choose among them; "
                "allowed: text_classification and multi_label"
            )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Raises a UserError where there is nothing to label."""
        if "unlabelled" not in job.tables:
            raise UserError("data.unlabelled: is required by self_training and was not given; allowed: a file of texts")
        if self.restart and job.training.ema is not None:
            raise UserError(
                f"training.ema: found {job.training.ema}; self_training begins each round anew, and the average would hold the "
                "round before; allowed: null, or strategy.restart: false"
            )
        if self.restart:
            free = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
            model.first_weights = free  # type: ignore[assignment]
        return job

    def next_phase(self, state: State, view: View) -> Phase | None:
        finished = len(state.finished)
        following = self.rounds - finished
        if finished == 0:
            return Phase("supervised", following=following)
        if following < 0 or view.steps_left == 0:
            return None
        unlabelled = view.tables["unlabelled"]
        rows, labels = self.choose(view.predict(unlabelled), view.tables["train"].dense["labels"], finished)
        if len(rows) == 0:
            say(f"warning: round {finished} of {self.rounds}: the model is sure of no unlabelled row, so training ends")
            return None
        say(f"round {finished} of {self.rounds}: {len(rows):,} of {len(unlabelled):,} unlabelled rows join in")
        if self.restart:
            _put_back(view.model)
        also = {"split": "unlabelled", "rows": rows.tolist(), "labels": labels.tolist()}
        return Phase(f"round {finished}", keep_optimizer=not self.restart, following=following, also=also)

    def choose(self, answers: dict[str, np.ndarray], taught: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows (int64) that join in round `number`, counted from 1, and their labels as those of train are kept.

        Args:
            answers: `prediction` and `scores` (rows, labels) for the unlabelled rows.
            taught: the labels of train.
        """
        scores = answers["scores"].astype(np.float64)
        if taught.ndim == 2:  # a row is as sure as the least sure of its decisions; it counts for its surest label
            sure, kind = np.maximum(scores, 1 - scores).min(1), np.where(scores.max(1) >= 0.5, scores.argmax(1), scores.shape[1])
            rarest = np.where(taught > 0, taught.sum(0), np.inf)
            own = np.where(taught.any(1), rarest.argmin(1), taught.shape[1])
            labels = (scores >= 0.5).astype(taught.dtype)
        else:
            sure, kind, own = scores.max(1), scores.argmax(1), taught
            labels = kind.astype(taught.dtype)
        classes = int(max(kind.max(initial=0), own.max(initial=0))) + 1
        mean = np.bincount(kind, sure, classes) / np.maximum(np.bincount(kind, minlength=classes), 1)
        threshold = self.confidence * mean / max(float(mean.max()), 1e-12)
        enough = sure >= threshold[kind]
        most = self.share * len(sure) * number / self.rounds
        wanted = np.bincount(own, minlength=classes) / len(own) * most
        chosen: list[np.ndarray] = []
        drawn = np.random.default_rng(number).permutation(len(sure))  # of rows that are equally sure not the first of the file
        for label in range(classes):
            candidates = drawn[(kind == label)[drawn] & enough[drawn]]
            order = candidates[np.argsort(-sure[candidates], kind="stable")]
            chosen.append(order[: int(np.ceil(wanted[label]))] if self.balance else order)
        rows = np.concatenate(chosen)
        if not self.balance:
            rows = drawn[np.isin(drawn, rows)]  # nor those of the first class
            rows = rows[np.argsort(-sure[rows], kind="stable")][: int(np.ceil(most))]
        rows = np.sort(rows).astype(np.int64)
        return rows, labels[rows]


def _put_back(model: Any) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in model.first_weights.items():
            parameters[name].copy_(value)

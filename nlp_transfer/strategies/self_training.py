"""Self-training: train on labeled rows, predict unlabeled rows, and train again on the confident predictions, in rounds.

When to use it: with few labeled rows and many unlabeled ones from the same distribution (`data.unlabelled`).

Cost: in each round, predictions for all unlabeled rows, and one more training phase.

Lee 2013, "Pseudo-Label". The rounds follow Mukherjee and Awadallah 2020, "Uncertainty-aware Self-training for Few-shot Text
Classification", 2006.15315: a teacher labels rows, a student is trained on them from the pretrained weights, and the student
becomes the next teacher. Each class has a separate confidence threshold, as in Zhang et al. 2021, "FlexMatch", 2110.08263,
since a single threshold would exclude difficult classes.
"""

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import nn
from transformers import PreTrainedModel

from nlp_transfer.data.oversampling import rarest_labels
from nlp_transfer.settings.base_settings import Count, Positive, Share
from nlp_transfer.strategies import Group, Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.layer_depth import scale_mixed_head
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import UserError


class SelfTraining(Strategy):
    """Train on labeled rows and on pseudo-labels, which are predictions for `data.unlabelled` with the best weights so far."""

    traits = StrategyTraits(owns_phases=True, needs_task="classes", uses_weights=False, uses_unlabelled=True,
        search_space={"strategy.confidence": [0.3, 0.5, 0.7, 0.9], "strategy.share": [0.2, 0.4, 0.8]},
    )  # fmt: skip

    rounds: Count = 2
    """Number of rounds with pseudo-labels. They follow an initial phase with labeled rows only."""
    confidence: Share = 0.5
    """Minimum probability of a pseudo-label for the class with the highest average probability. For other classes the minimum is
    lower, in proportion to their average probability."""
    share: Positive = 0.4
    """Maximum share of the unlabeled rows to use in the last round; the most confident ones are used. The limit grows linearly
    over the rounds: round 1 of 2 can use half of it."""
    balance: bool = True
    """Limit the number of pseudo-labels of each class in proportion to its share of the labeled rows. false: no limit per
    class."""
    restart: bool = True
    """Start each round from the pretrained weights. false: start from the weights of the previous round."""

    _initial_weights: dict[str, torch.Tensor] = PrivateAttr(default_factory=dict)

    def param_groups(self, model: nn.Module, groups: list[Group]) -> list[Group]:
        """Give the head a higher learning rate, unless another strategy in the list determines that rate."""
        return scale_mixed_head(model, groups)

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        """Check that there are unlabeled rows, and copy the initial weights for restarts."""
        if "unlabelled" not in job.tables:
            raise UserError("data.unlabelled: is required by self_training and was not given; allowed: a file of texts")
        if self.restart and job.training.ema is not None:
            raise UserError(
                f"training.ema: found {job.training.ema}; self_training restarts each round, and the average would contain the "
                "previous round; allowed: null, or strategy.restart: false"
            )
        if self.restart:
            weights = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
            self._initial_weights.clear()
            self._initial_weights.update(weights)
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
            say(f"warning: round {finished} of {self.rounds}: no prediction of an unlabeled row is confident, so training ends")
            return None
        say(f"round {finished} of {self.rounds}: {len(rows):,} of {len(unlabelled):,} unlabeled rows are used")
        if self.restart:
            self._restore_initial_weights(view.model)
        also = {"split": "unlabelled", "rows": rows.tolist(), "labels": labels.tolist()}
        return Phase(f"round {finished}", keep_optimizer=not self.restart, following=following, also=also)

    def choose(self, predictions: dict[str, np.ndarray], targets: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Select the pseudo-labels of a round.

        In multi-label tasks, each label of a row is one decision. The confidence of the row is that of its least confident
        decision, and its class is its most probable label.

        Args:
            predictions: `scores` of the unlabeled rows, of shape (rows, labels).
            targets: Targets of the labeled rows.
            number: Number of the round, starting from 1.

        Returns:
            The selected rows, int64 of shape (n,), and their labels, with the dtype of `targets` and shape (n,) or (n, labels).
        """
        scores = predictions["scores"].astype(np.float64)
        if targets.ndim == 2:
            confidence = np.maximum(scores, 1 - scores).min(1)
            predicted = np.where(scores.max(1) >= 0.5, scores.argmax(1), scores.shape[1])  # last class: no label
            rarest = rarest_labels(targets)
            target_class = np.where(rarest < 0, targets.shape[1], rarest)
            labels = (scores >= 0.5).astype(targets.dtype)
        else:
            confidence, predicted, target_class = scores.max(1), scores.argmax(1), targets
            labels = predicted.astype(targets.dtype)
        classes = int(max(predicted.max(initial=0), target_class.max(initial=0))) + 1
        mean = np.bincount(predicted, confidence, classes) / np.maximum(np.bincount(predicted, minlength=classes), 1)
        threshold = self.confidence * mean / max(float(mean.max()), 1e-12)
        confident = confidence >= threshold[predicted]
        limit = self.share * len(confidence) * number / self.rounds
        limits = np.bincount(target_class, minlength=classes) / len(target_class) * limit
        order = np.random.default_rng(number).permutation(len(confidence))  # break ties at random
        chosen: list[np.ndarray] = []
        for label in range(classes):
            candidates = order[(predicted == label)[order] & confident[order]]
            by_confidence = candidates[np.argsort(-confidence[candidates], kind="stable")]
            chosen.append(by_confidence[: int(np.ceil(limits[label]))] if self.balance else by_confidence)
        rows = np.concatenate(chosen)
        if not self.balance:
            rows = order[np.isin(order, rows)]  # break ties between classes at random, too
            rows = rows[np.argsort(-confidence[rows], kind="stable")][: int(np.ceil(limit))]
        rows = np.sort(rows).astype(np.int64)
        return rows, labels[rows]

    def _restore_initial_weights(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self._initial_weights.items():
                parameters[name].copy_(value)

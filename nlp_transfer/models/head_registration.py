"""Makes transformers know the toolkit's own model type, without importing transformers.

`import nlp_transfer` must stay light (the command's help answers at once), and yet `pipeline` has to load a saved head
after it. So the registration waits: it runs when transformers loads its tables of Auto classes, or at once if it has.
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
    """Imports the classes, which register themselves at the end of their module. Where that is what loads transformers, it is
    half way through; then nothing happens here, and it registers them when it comes to its end."""
    importlib.import_module("nlp_transfer.models.heads")


WAITING: dict[str, Callable[[], None]] = {"transformers.models.auto.modeling_auto": _register}


class _AfterImport(MetaPathFinder):
    """Runs the registration once the module it waits for has been executed."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WAITING:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        then = WAITING.pop(name)
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> Any:
            execute(module)
            then()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Called by `import nlp_transfer`."""
    for name in [name for name in WAITING if name in sys.modules]:
        WAITING.pop(name)()
    if WAITING and not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())

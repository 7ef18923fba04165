"""Train a tiny model with every pair of strategies in both orders: the model is saved and loaded, or the pair is refused with a
message.

    python -m scripts.endurance.strategy_pairs        # about 5 minutes on one core

Prints one line for each pair. Exit status 1 if any crashed.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import traceback
from itertools import permutations
from pathlib import Path

from nlp_transfer import UserError, fine_tune, load_predictor
from nlp_transfer.settings import registry
from tests.helpers.models import save_tiny
from tests.helpers.strategies import document, files, settings_of

TASK = "single"


def main() -> int:
    folder = Path(tempfile.mkdtemp())
    checkpoint, source = save_tiny("bert", folder / "bert"), files(folder / "data")
    crashed = 0
    for first, second in permutations(registry.names("strategy"), 2):
        output = folder / "run"
        shutil.rmtree(output, ignore_errors=True)
        run = document(first, TASK, checkpoint, source, output, folder)
        run["strategy"] = [settings_of(name, TASK, checkpoint, source, folder) for name in (first, second)]
        if {first, second} & {"self_training", "distill"}:
            run["data"]["unlabelled"] = source["unlabelled"]
        run["task"] = {"name": "text_classification"}
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                fine_tune(**run)
                load_predictor(output)(["a good film"])
            found = "works"
        except UserError as error:
            found = f"refused: {' '.join(str(error).split())}"
        except Exception:
            crashed += 1
            found = f"CRASHED: {traceback.format_exc()}"
        print(f"{first} + {second}: {found}", flush=True)
    shutil.rmtree(folder)
    return 1 if crashed else 0


if __name__ == "__main__":
    sys.exit(main())

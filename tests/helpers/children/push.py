"""A child process that pushes to a hub on the loopback interface, and loads by id.

Its argument is a folder. It prints the name of each completed step.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

from tests.helpers.hub import environment, serve


def run(folder: Path) -> None:
    with serve() as (address, hub):
        os.environ.clear()
        os.environ.update(environment(address, folder / "cache"))
        from huggingface_hub.utils import _http

        from tests.helpers.children.push_steps import ANN, BEA, STEPS

        _http.time = SimpleNamespace(sleep=lambda seconds: None)  # type: ignore[assignment]
        os.environ["HF_TOKEN"] = ANN
        hub.user(ANN, "ann", orgs={"lab": "admin"})
        hub.user(BEA, "bea")
        base = folder / "tiny"
        hub.seed("ann/tiny", {file.name: file.read_bytes() for file in base.iterdir()})
        hub.seed("bea/hers", {"note.txt": b"hers"})
        for step in STEPS:
            step(folder, hub, address)
            print(step.__name__, flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))

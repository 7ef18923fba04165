"""Graphs that have been written before."""

import shutil
from pathlib import Path
from typing import Any


def copy_graph(graph: Path, model: Any, inputs: Any, path: Path) -> None:
    """Take the place of `write_onnx`, which takes most of the time of an export."""
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(graph, path)

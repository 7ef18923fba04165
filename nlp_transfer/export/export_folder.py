"""What all exports share: the folder that is written, the file of the graph, the rows that are drawn, heads of pretraining."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import TokenTable, model_inputs
from nlp_transfer.inference.exported_model import GRAPHS
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError

PRETRAINING = (None, "MaskedLM", "PreTraining")  # heads that are not used after pretraining
CALIBRATION_ROWS = 300


def output_folder(model: str | Path, name: str, report: str, output: str | Path | None, overwrite: bool) -> Path:
    """Return the folder to write.

    Args:
        name: name of the folder in `exports` of the run, if `output` is None.
        report: name of the file by which a folder of the same kind is recognized, which alone may be replaced.

    Raises:
        UserError: the folder exists and must not be replaced, or `output` is required.
    """
    place = expand(model)
    if output is None and not (place / "config.yaml").is_file():
        raise UserError(f"--output: is required, since {model} is not the folder of a run; allowed: a folder")
    folder = place / "exports" / name if output is None else expand(output)
    if folder.exists() and not overwrite:
        raise UserError(f"--output: {folder} already exists; allowed: another folder, or --overwrite to replace it")
    if folder.exists() and not (folder / report).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output: {folder} has no {report}, so it is not replaced; allowed: another folder")
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder that replaces `folder` at the end of the block. After an error nothing is left, also no parent folder."""
    had_parent = folder.parent.is_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing_folder(folder) as partial:
            yield partial
    except BaseException:
        if not had_parent:
            with suppress(OSError):  # another export may have written there
                folder.parent.rmdir()
        raise


def graph_paths(folder: Path, to: str, precision: str) -> tuple[Path, Path]:
    """Return the files of the fp32 ONNX graph and of the graph of the engine, which may be the same."""
    graph = folder / GRAPHS[to][("fp32", "fp16", "int8").index(precision) if to == "onnx" else 0]
    # Under a name by which no engine finds it, since the check would otherwise load it instead of the converted graph.
    return graph if (to, precision) == ("onnx", "fp32") else folder / "intermediate.onnx", graph


def remove_intermediate(onnx: Path, graph: Path) -> None:
    """Remove the ONNX graph, unless it is the export itself."""
    if graph != onnx:
        onnx.unlink()


def graph_bytes(graph: Path) -> int:
    """Return the size of the files of a graph."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.stem}.*"))


def draw(rows: Rows, count: int) -> Rows:
    """Return up to `count` rows, drawn at random and in their order."""
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def calibration_inputs(table: TokenTable) -> list[dict[str, np.ndarray]]:
    """Return the inputs of each of the first rows, without padding."""
    rows = range(min(CALIBRATION_ROWS, len(table)))
    return [{name: ids.numpy() for name, ids in model_inputs(table.batch(np.array([i]))).items()} for i in rows]

"""The saved model: written beside, loaded again, compared, and only then given its name."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nlp_transfer.config import TrainingConfig
from nlp_transfer.errors import UserError
from nlp_transfer.heads import EncoderHeadForSequenceClassification
from nlp_transfer.inference import Predictor
from nlp_transfer.models import Checkpoint, forbid_new_parameters
from nlp_transfer.sources import HUB_MODEL, ModelSource, find_model
from nlp_transfer.tasks import Task, task_from, task_name
from nlp_transfer.tasks._schema import check_schema, task_for_config

RECORD = "nlp_transfer.json"
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "scikit-learn", "tokenizers", "numpy")
TOLERANCE = 1e-3  # a merged or reloaded model may differ by rounding, not by more


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what results depend on."""
    return {"nlp_transfer": version("nlp_transfer"), "python": python_version()} | {name: version(name) for name in PACKAGES}


def is_plain(model: PreTrainedModel) -> bool:
    """Whether transformers loads the model by itself."""
    return not isinstance(model, EncoderHeadForSequenceClassification)


def record(task: Task, plain: bool, metrics: dict[str, Any] | None = None, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is saved beside a model so that it answers the same elsewhere."""
    return {
        "task": task_name(task),
        "columns": {"inputs": task.input_columns(), "targets": task.target_columns()},
        "labels": getattr(task, "labels", None),
        "threshold": getattr(task, "threshold", None),
        "max_length": task.max_length,
        "settings": task.document(),
        "plain": plain,
        **({"base": base} if base else {}),
        "metrics": metrics or {},
        "versions": versions(),
    }


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path, probe: dict[str, torch.Tensor]
) -> PreTrainedModel:
    """Writes the model folder and gives back the model as it was read again from there.

    Args:
        probe: a batch; the model on disk must give the logits of the one in memory for it.

    Raises:
        RuntimeError: what was read again answers otherwise. Nothing is left behind then.
    """
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    with quiet():
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if isinstance(model, EncoderHeadForSequenceClassification):
            model.encoder.save_pretrained(part / "encoder")
            tokenizer.save_pretrained(part / "encoder")
    write_json(part / RECORD, record(task, is_plain(model)))
    again: Any = load_model(part)
    try:
        _compare(model, again, probe, part)
    except RuntimeError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    os.replace(part, folder)
    return again.to(next(model.parameters()).device)


def check_adapter(
    folder: Path, checkpoint: Checkpoint, task: Task, model: PreTrainedModel, probe: dict[str, torch.Tensor]
) -> None:
    """Puts the labels beside an adapter, then loads it on its base and compares with the merged model.

    Raises:
        RuntimeError: it answers otherwise.
    """
    base = {"model": checkpoint.source.name, "revision": checkpoint.revision}
    write_json(folder / RECORD, record(task, is_plain(model), base=base))
    _compare(model, load_adapter(folder), probe, folder)


def _compare(model: PreTrainedModel, again: PreTrainedModel, probe: dict[str, torch.Tensor], folder: Path) -> None:
    inputs = {name: tensor for name, tensor in probe.items() if name != "labels"}
    device = next(model.parameters()).device
    with torch.inference_mode():
        wanted = model.eval()(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits.float().cpu()
        found = again.eval()(**inputs).logits.float().cpu()
    difference = float((wanted - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise RuntimeError(f"{folder}: read again, the model's logits differ by {difference}; it was not saved faithfully")


def load_model(folder: Path) -> PreTrainedModel:
    """A saved classifier, its head included.

    Raises:
        UserError: it cannot be loaded, or weights are missing: a head would be drawn at random without a word.
    """
    return load_checkpoint(Checkpoint.open(ModelSource(str(folder), str(folder))))


def load_checkpoint(checkpoint: Checkpoint) -> PreTrainedModel:
    with quiet():
        model = checkpoint.load(AutoModelForSequenceClassification)
    forbid_new_parameters(model, checkpoint.source.name)
    return model


def load_adapter(folder: Path) -> PreTrainedModel:
    """An `adapter/` on the base it was trained on, merged.

    Raises:
        UserError: it has no record of its base and labels.
    """
    from peft import PeftModel

    saved = read_record(folder)
    if saved is None or "base" not in saved:
        raise UserError(f"{folder}: is an adapter without its {RECORD}, which says on what base it belongs")
    task = task_from(saved["settings"])
    base = find_model(saved["base"]["model"])
    checkpoint = Checkpoint.open(ModelSource(base.name, base.path, base.revision or saved["base"]["revision"]))
    with quiet():
        model = task.build_model(checkpoint, TrainingConfig())
        merged: PreTrainedModel = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return merged


def load_predictor(model: str | Path, batch_size: int = 32, precision: str = "fp32") -> Predictor:
    """A run folder, a model folder, an adapter folder or a hub id, ready to answer.

    A classifier that was not saved by this toolkit works too: its labels are those in its configuration, its input
    column is `text`.

    Raises:
        UserError: there is no such model, or its labels contradict each other.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(model).expanduser()
    if (path / "adapter_config.json").is_file():
        saved = read_record(path) or {}
        adapted: Any = load_adapter(path)
        source = find_model(saved["base"]["model"])
        return Predictor(
            adapted.to(device), Checkpoint.open(source).tokenizer, task_from(saved["settings"]), batch_size, precision
        )
    checkpoint = Checkpoint.open(find_model(str(model)))
    found = read_record(Path(checkpoint.source.path)) if checkpoint.source.is_folder else _hub_record(checkpoint)
    task = task_from(found["settings"]) if found else task_for_config(checkpoint)
    check_schema(task, checkpoint)
    if task.max_length is None:
        task = task.model_copy(update={"max_length": min(512, checkpoint.max_length)})
    whole: Any = load_checkpoint(checkpoint)
    return Predictor(whole.to(device), checkpoint.tokenizer, task, batch_size, precision)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The folder's `nlp_transfer.json`, or None where there is none."""
    try:
        saved: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD}: cannot be read ({error})") from error
    if not isinstance(saved, dict) or "settings" not in saved:
        raise UserError(f"{folder / RECORD}: found no `settings`; is it a file of this toolkit?")
    return saved


def _hub_record(checkpoint: Checkpoint) -> dict[str, Any] | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    assert HUB_MODEL.match(checkpoint.source.path)
    try:
        return read_record(Path(hf_hub_download(checkpoint.source.path, RECORD, revision=checkpoint.revision)).parent)
    except EntryNotFoundError:
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a whole file or none. A NaN is refused: JSON has no word for it, and readers elsewhere stop at it."""
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars, advice and deprecations that transformers prints around loading and saving."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an old name
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()

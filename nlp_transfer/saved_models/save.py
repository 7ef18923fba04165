"""The saved model: written beside, loaded again, compared, and only then given its name."""

import shutil
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.kernels.sdpa import attention_for_fp32
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.saved_models.custom_models import is_built, save_built, save_candidates
from nlp_transfer.saved_models.load import RECORD, load_model, open_adapter, quiet, read_record
from nlp_transfer.saved_models.probe import describe_tokenizer, make_probe
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import DiskFullError, replacing_folder, write_json
from nlp_transfer.utils.errors import UserError

PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "scikit-learn", "tokenizers", "sacrebleu", "numpy",
)  # fmt: skip
TOLERANCE = 1e-3  # a merged or reloaded model may differ by rounding, not by more


class UnfaithfulError(RuntimeError):
    """A model that was read again computes something else than the one that was saved."""


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what results depend on."""
    return {"nlp_transfer": version("nlp_transfer"), "python": python_version()} | {name: version(name) for name in PACKAGES}


def is_plain(model: PreTrainedModel) -> bool:
    """Whether transformers loads the model by itself."""
    return not (isinstance(model, EncoderHeadForSequenceClassification) or is_adapted(model) or is_built(model))


def is_adapted(model: Any) -> bool:
    """Whether the model is a base below an adapter that could not be merged."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


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


def add_to_record(folder: Path, fields: dict[str, Any]) -> None:
    """Puts more into the record that stands in a folder already."""
    write_json(folder / RECORD, (read_record(folder) or {}) | fields)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path, probe: dict[str, torch.Tensor],
    checkpoint: Checkpoint | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Writes the model folder and gives back the model as it was read again from there.

    Args:
        probe: a batch; the model on disk must give the logits of the one in memory for it.
        checkpoint: what the task built the model on, for a model that no Auto class knows.

    Raises:
        RuntimeError: what was read again answers otherwise. Nothing is left behind then.
    """
    task, errors = task.export(model), []
    for config in save_candidates(model, checkpoint, task):
        try:
            return _save_as(config, model, tokenizer, task, folder, probe)
        except DiskFullError:
            raise
        except (UnfaithfulError, UserError) as error:
            errors.append(error)
    raise errors[0]


def _save_as(
    config: PretrainedConfig | None, model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path,
    probe: dict[str, torch.Tensor],
) -> PreTrainedModel:  # fmt: skip
    with replacing_folder(folder) as part:
        with quiet():
            if config is None:
                model.save_pretrained(part)
            else:
                save_built(model, config, task, part)
            tokenizer.save_pretrained(part)
            task.save_parts(part)
            if isinstance(model, EncoderHeadForSequenceClassification):
                model.encoder.save_pretrained(part / "encoder")
                tokenizer.save_pretrained(part / "encoder")
        write_json(part / RECORD, record(task, is_plain(model)))
        again: Any = load_model(part, task.auto_class(), task)
        task.connect(again)
        _compare(task, model, again, probe, part)
        add_to_record(part, {"probe": make_probe(again, part)})
    found: PreTrainedModel = again.to(next(model.parameters()).device)
    return found


def save_adapted(adapter: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedModel:
    """Makes the model folder of an adapter that cannot be merged, and gives back the model as it is loaded from there.

    It holds the adapter and no config.json, so that nothing takes it for a model whose head is to be drawn at random.
    """
    with replacing_folder(folder) as part, quiet():
        shutil.copytree(adapter, part, dirs_exist_ok=True)
        tokenizer.save_pretrained(part)
    return open_adapter(folder)[0]


def verify_adapter(
    folder: Path, checkpoint: Checkpoint, task: Task, model: PreTrainedModel, probe: dict[str, torch.Tensor]
) -> None:
    """Puts the labels beside an adapter, then loads it on its base and compares with the merged model.

    Raises:
        RuntimeError: it answers otherwise.
    """
    task = task.export(model)
    local = checkpoint.source.is_folder and not is_wheel(checkpoint.source.name)
    name = str(Path(checkpoint.source.path).absolute()) if local else checkpoint.source.name
    base = {"model": name, "revision": checkpoint.revision}
    write_json(folder / RECORD, record(task, is_plain(model), base=base) | {"merges": not is_adapted(model)})
    task.save_parts(folder)
    again = open_adapter(folder, verify=False)[0]
    _compare(task, model, again, probe, folder)
    add_to_record(folder, {"probe": make_probe(again, folder), "tokenizer": describe_tokenizer(checkpoint.tokenizer)})


def _compare(task: Task, model: Any, again: PreTrainedModel, probe: dict[str, torch.Tensor], folder: Path) -> None:
    """Compare the logits of a model and of what was read again from `folder`, both in fp32 on the CPU.

    There neither TF32 nor the kernels of another device make a difference that saving did not make.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    inputs = model_inputs(probe)
    device = next(model.parameters()).device
    model.eval().to("cpu")
    try:
        with torch.inference_mode(), attention_for_fp32(model), task.computing(model), task.computing(again):
            expected = model(**inputs).logits.float()
            logits = again.eval()(**inputs).logits.float()
    finally:
        model.to(device)
    difference = float((expected - logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UnfaithfulError(f"{folder}: read again, the model's logits differ by {difference}; it was not saved faithfully")

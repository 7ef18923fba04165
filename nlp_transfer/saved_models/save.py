"""Save models: write a temporary folder, load it, compare its logits with the original model's, and only then rename it."""

import shutil
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification
from nlp_transfer.models.layers import output_logits
from nlp_transfer.models.regression_output import standardized_outputs
from nlp_transfer.models.sdpa import attention_for_fp32
from nlp_transfer.saved_models.custom_models import is_built, save_built, save_candidates
from nlp_transfer.saved_models.layout import ENCODER
from nlp_transfer.saved_models.load import RECORD, load_model, open_adapter, quiet, read_record
from nlp_transfer.saved_models.probe import describe_tokenizer, make_probe
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import DiskFullError, replacing_folder, write_json
from nlp_transfer.utils.errors import UserError

PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "evaluate", "peft", "scikit-learn", "tokenizers", "sacrebleu", "numpy",
)  # fmt: skip
TOLERANCE = 1e-3  # logits of a merged or reloaded model may differ only by rounding


class UnfaithfulError(RuntimeError):
    """A model has different logits after saving and loading it."""


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, and the libraries that results depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    return {"nlp_transfer": version("nlp_transfer"), "python": python_version()} | {name: version(name) for name in PACKAGES}


def is_plain(model: PreTrainedModel) -> bool:
    """Return whether transformers can load the model without this package."""
    return not (isinstance(model, EncoderHeadForSequenceClassification) or is_adapted(model) or is_built(model))


def is_adapted(model: Any) -> bool:
    """Return whether the model has an adapter that could not be merged."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def record(task: Task, plain: bool, base: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of `nlp_transfer.json`: the task with its settings, and versions. Metrics are added later.

    Args:
        plain: whether transformers can load the model without this package.
        base: name and revision of an adapter's base model.
    """
    settings = task.document()
    return {
        "task": task_name(task),
        "columns": {"inputs": task.inputs, "targets": task.targets},
        "labels": list(task.scorer.labels) or None,
        "threshold": settings.get("threshold"),
        "max_length": task.max_length,
        "settings": settings,
        "plain": plain,
        **({"base": base} if base else {}),
        "metrics": {},
        "versions": versions(),
    }


def add_to_record(folder: Path, fields: dict[str, Any]) -> None:
    """Add fields to the `nlp_transfer.json` of a folder."""
    write_json(folder / RECORD, (read_record(folder) or {}) | fields)


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path, probe: dict[str, torch.Tensor],
    checkpoint: Checkpoint | None = None,
) -> PreTrainedModel:  # fmt: skip
    """Save a model, load it again for comparison, and return the loaded model.

    Args:
        probe: a batch for which the loaded model must have the same logits.
        checkpoint: the checkpoint from which the task built the model; needed for models that no Auto class knows.

    Raises:
        UnfaithfulError: the loaded model has different logits; `folder` is not written.
    """
    errors = []
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
    with replacing_folder(folder) as partial:
        with quiet():
            task = task.export(model, partial)
            if config is None:
                model.save_pretrained(partial)
            else:
                save_built(model, config, task, partial)
            tokenizer.save_pretrained(partial)
            save_encoder(model, tokenizer, partial)
        write_json(partial / RECORD, record(task, is_plain(model)))
        loaded: Any = load_model(partial, task.traits.load_auto_class(), task)
        task.connect(loaded)
        _compare(model, loaded, probe, partial)
        add_to_record(partial, {"probe": make_probe(loaded, partial)})
    result: PreTrainedModel = loaded.to(next(model.parameters()).device)
    return result


def save_encoder(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the encoder of a model with a head of this package in the subfolder `encoder`, which transformers alone can load."""
    if isinstance(model, EncoderHeadForSequenceClassification):
        model.encoder.save_pretrained(folder / ENCODER)
        tokenizer.save_pretrained(folder / ENCODER)


def save_adapted(adapter: Path, tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedModel:
    """Create the model folder for an adapter that cannot be merged, and return the model loaded from this folder.

    The folder contains the adapter and no config.json, so that no program can load it as a model with a random head.
    """
    with replacing_folder(folder) as partial, quiet():
        shutil.copytree(adapter, partial, dirs_exist_ok=True)
        tokenizer.save_pretrained(partial)
    return open_adapter(folder)[0]


def verify_adapter(
    folder: Path, checkpoint: Checkpoint, task: Task, model: PreTrainedModel, probe: dict[str, torch.Tensor]
) -> None:
    """Write the record of an adapter, load the adapter on its base, and compare the result with `model`.

    Raises:
        UnfaithfulError: the loaded adapter has different logits.
    """
    task = task.export(model, folder)
    local = checkpoint.source.is_folder and not is_wheel(checkpoint.source.name)
    name = str(Path(checkpoint.source.path).absolute()) if local else checkpoint.source.name
    base = {"model": name, "revision": checkpoint.revision}
    write_json(folder / RECORD, record(task, is_plain(model), base=base) | {"merges": not is_adapted(model)})
    loaded = open_adapter(folder, verify=False)[0]
    _compare(model, loaded, probe, folder)
    add_to_record(folder, {"probe": make_probe(loaded, folder), "tokenizer": describe_tokenizer(checkpoint.tokenizer)})


def _compare(model: Any, loaded: PreTrainedModel, probe: dict[str, torch.Tensor], folder: Path) -> None:
    """Compare the logits of a model with those of the model loaded from `folder`, both in fp32 on the CPU.

    Raises:
        UnfaithfulError: the logits differ by more than rounding.
    """
    inputs = model_inputs(probe)
    device = next(model.parameters()).device
    model.eval().to("cpu")
    try:
        with torch.inference_mode(), attention_for_fp32(model), standardized_outputs(model), standardized_outputs(loaded):
            expected = output_logits(model(**inputs)).float()
            logits = output_logits(loaded.eval()(**inputs)).float()
    finally:
        model.to(device)
    difference = float((expected - logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UnfaithfulError(f"{folder}: the logits of the saved model differ by {difference}, so it was not saved faithfully")

"""Load a saved model, ready to predict or translate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModelForSeq2SeqLM

from nlp_transfer.data.sources import find_model
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.models.checkpoint import Checkpoint, check_head
from nlp_transfer.models.device import inference_device, resolve_precision
from nlp_transfer.models.layers import encoder_type
from nlp_transfer.models.verification.allowed import RECORD
from nlp_transfer.models.verification.model_files import read_settings
from nlp_transfer.saved_models.custom_models import check_built
from nlp_transfer.saved_models.load import (
    check_record,
    find_adapter,
    hub_adapter,
    load_checkpoint,
    open_adapter,
    with_changed_settings,
)
from nlp_transfer.settings.applicability import check_used
from nlp_transfer.tasks import Task, task_from
from nlp_transfer.tasks.common.saved_labels import check_schema, task_for_config
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import UserError


def load_predictor(
    model: str | Path,
    batch_size: int | None = None,
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    task: type[Task] | Task | None = None,
) -> Predictor:
    """A run folder, a model folder, an adapter folder or a hub id, ready to answer.

    A classifier or a translation model that was not saved by this toolkit works too: its labels are those in its
    configuration, its input column is `text` (`source`).

    Args:
        batch_size: rows in a batch; null: as many as the device computes best at once.
        precision: fp32, which the commands take as well and which gives the predictions of plain transformers; bf16; fp16; or
            auto: bf16 on CPUs with instructions for it (avx512_bf16, amx) and on GPUs (fp16 on older ones), fp32 elsewhere. In
            bf16 it is faster, and a probability differs by 0.0008 on average and 0.02 at most (Banking77, MiniLM).
        settings: of the task, in place of those it was saved with: other column names, say, or languages. Those that change
            nothing of a saved model are refused.
        base: of an adapter, where the model that it was trained on lies now; null: where it was then. That it is the same
            model is checked.
        task: the class of its task, for one that cannot be found by the name in its record, such as a class of a notebook.

    Raises:
        UserError: there is no such model, its labels contradict each other, it cannot compute in this precision, a setting
            would make it another model, or an adapter's base is missing or another model.
    """
    device = inference_device()
    path = expand(model)
    kind = task if task is None or isinstance(task, type) else type(task)
    whole: Any
    if adapter := find_adapter(path) or hub_adapter(str(model)):
        whole, checkpoint, saved = open_adapter(adapter, settings, base=base, kind=kind)
    else:
        if base is not None:
            raise UserError(f"base: found {base}; {model} is no adapter and needs no base; allowed: null")
        checkpoint = Checkpoint.open(find_model(str(model)))
        found = check_record(read_settings(checkpoint.source, RECORD), checkpoint.source.name)
        before = task_from(found["settings"], kind) if found else task_for_config(checkpoint)
        check_head(
            checkpoint, "ConditionalGeneration" if before.auto_class() is AutoModelForSeq2SeqLM else "SequenceClassification"
        )
        saved = with_changed_settings(before, settings, checkpoint.max_length).restore(checkpoint)
        check_schema(saved, checkpoint)
        whole = load_checkpoint(checkpoint, saved.auto_class(), saved)
        check_built(whole, saved, found, checkpoint.source.name)
    check_used(saved, scored=True)
    precision, _ = resolve_precision(precision, encoder_type(checkpoint.config), "--precision")
    return Predictor(whole.to(device), checkpoint.tokenizer, saved, batch_size, precision)


def load_translator(
    model: str | Path,
    batch_size: int | None = None,
    precision: str = "fp32",
    settings: Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    task: type[Task] | Task | None = None,
) -> Translator:
    """Like `load_predictor`, for a translation model: a function from texts to texts.

    Raises:
        UserError: as there; or the model does not translate.
    """
    return Translator(load_predictor(model, batch_size, precision, settings, base, task))

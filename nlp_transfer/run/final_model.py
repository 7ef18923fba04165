"""Save the trained model and load it again, so that the saved model is scored."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nlp_transfer.models.regression_output import fold_outputs
from nlp_transfer.models.verification.weight_files import check_finite
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.saved_models.load import quiet
from nlp_transfer.saved_models.save import is_adapted, save_adapted, save_model, verify_adapter
from nlp_transfer.strategies import Job, Strategy
from nlp_transfer.utils.atomic_files import retry_while_full


def save_final_model(strategy: Strategy, job: Job, model: Any, folder: RunFolder, accelerator: Accelerator) -> Any:
    """Export the model of a run and save it to `model/` (and `adapter/`); return the model loaded from there.

    Every process must call this; only the main process keeps the files.
    """
    check_finite(model, "training: the trained model", "a lower training.learning_rate, or training.precision: fp32")
    fold_outputs(model)  # before the head is saved with an adapter
    if not accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as discarded:
            return strategy.export_model(model, Path(discarded))
    with quiet():
        exported = strategy.export_model(model, folder.path)
    if is_adapted(exported):
        verify_adapter(folder.path / "adapter", job.checkpoint, job.task, exported, job.sample())
        return save_adapted(folder.path / "adapter", job.checkpoint.tokenizer, folder.path / "model").to(accelerator.device)
    model_folder = folder.path / "model"
    saved = retry_while_full(partial(save_job, job, exported, model_folder), "the model", model_folder)
    if (folder.path / "adapter").is_dir():
        verify_adapter(folder.path / "adapter", job.checkpoint, job.task, exported, job.sample())
    return saved


def save_job(job: Job, model: Any, model_folder: Path) -> Any:
    """Save a model with the tokenizer and task of its job to the folder `model_folder`; return the model loaded from there."""
    return save_model(model, job.checkpoint.tokenizer, job.task, model_folder, job.sample(), job.checkpoint)

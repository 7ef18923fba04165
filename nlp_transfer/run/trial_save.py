"""Check before training that the model can be saved: save it untrained, load it again and compare the outputs."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nlp_transfer.models.memory import is_out_of_memory
from nlp_transfer.run.final_model import save_final_model, save_job
from nlp_transfer.run.folder import LOCK, RunFolder
from nlp_transfer.security.file_locks import Lock, lock_now
from nlp_transfer.settings import registry
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.strategies import Job, Strategy, parts_of
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import DiskFullError
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import compute_on_main, same_random_state
from nlp_transfer.utils.errors import UserError, brief, first_line

PREFIX = ".trial-"


def check_saving(strategy: Strategy, job: Job, model: Any, output_dir: Path, accelerator: Accelerator) -> None:
    """Save a copy of the untrained model in the same way as at the end of the run, load it again and compare the logits.

    Call this after `Strategy.prepare_model` and before `prepare_data`. The model, all random states and `output_dir` do not
    change.

    Raises:
        UserError: saving or loading fails, or the logits differ.
    """

    def attempt(folder: Path) -> None:
        _check_class(job.task)
        strategy_copy, model_copy = _copy(strategy, model)
        save_final_model(strategy_copy, job, model_copy, RunFolder(str(folder)), accelerator)

    _try(attempt, job.task, model, output_dir, accelerator)


def check_saving_further(jobs: Mapping[str, tuple[Job, Any]], output_dir: Path, accelerator: Accelerator) -> None:
    """Check the auxiliary tasks of a strategy in the same way as `check_saving`. Call this after `prepare_data`."""
    for job, model in jobs.values():

        def attempt(folder: Path, job: Job = job, model: Any = model) -> None:
            _check_class(job.task)
            save_job(job, copy.deepcopy(model), folder / "model")

        _try(attempt, job.task, model, output_dir, accelerator)


def _try(attempt: Callable[[Path], None], task: Task, model: Any, output_dir: Path, accelerator: Accelerator) -> None:
    def run() -> None:
        with same_random_state(), _trial_folder(output_dir) as folder:
            try:
                attempt(folder)
            except (DiskFullError, OSError):
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                if any(not bool(torch.isfinite(weight).all()) for weight in model.parameters()):
                    return  # the weights are not finite; training will stop with an error that names the step and the rows
                raise UserError(_explain(task, model, error, folder)) from error

    compute_on_main(accelerator, run)


def _explain(task: Task, model: Any, error: Exception, folder: Path) -> str:
    reason = brief(str(error)) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    reason = reason.replace(f"{folder}/", "")
    name, kind = task_name(task), type(model).__name__
    advice = (
        f"{name}.build_model must build the same {kind} from the saved configuration and weights, its outputs must have "
        "`logits`, and its class must be importable in another process"
        if is_user_defined(task) or is_user_defined(model)
        else "choose another strategy, or another task.head"
    )
    return (
        f"task: {name} builds a {kind} that cannot be saved and loaded again, so nothing was trained. A trial with the untrained "
        f"model failed: {reason}. What to do: {advice}"
    )


def _check_class(task: Task) -> None:
    """Check that the task's class can be imported by its name; print a note if it is defined in the main script."""
    name = task_name(task)
    if ":" not in name:
        return
    registry.load("task", name)
    if name.startswith("__main__:"):
        say(
            f"note: {name} is a class of this script. To load the saved model in another process, move the class to a file and "
            "use --code FILE.py, or pass it: load_predictor(MODEL, task=...)"
        )


def _copy(strategy: Strategy, model: Any) -> tuple[Strategy, Any]:
    """Copy the strategy and the model together, since the strategy may refer to hooks in the model. Settings are shared."""
    memo = {id(value): value for part in parts_of(strategy).values() for value in vars(part).values()}
    copies: tuple[Strategy, Any] = copy.deepcopy((strategy, model), memo)
    return copies


@contextmanager
def _trial_folder(output_dir: Path) -> Iterator[Path]:
    """Create a temporary folder in `output_dir`; at the end, remove it and all parent folders that were created for it.

    Folders of killed trials are removed as well; a lock protects those of running processes.
    """
    created = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_stale(output_dir)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=output_dir))
    except OSError as error:
        raise UserError(f"output_dir: {output_dir} cannot be written: {error.strerror}; allowed: another folder") from error
    lock = _lock(folder)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)
        for empty in created:
            with suppress(OSError):  # another process is using it
                empty.rmdir()


def remove_stale(output_dir: Path) -> None:
    """Remove the folders of killed trials."""
    for folder in output_dir.glob(f"{PREFIX}*"):
        with suppress(OSError, UserError), _lock(folder, create=False):  # raised if it is in use or not a trial folder
            shutil.rmtree(folder)


def _lock(folder: Path, create: bool = True) -> Lock:
    return lock_now(folder / LOCK, f"{folder}: another process is using it", "folders of killed trials are not removed", create)

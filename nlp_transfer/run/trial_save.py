"""Before anything is trained: is what is saved at the end read again as it was? The untrained model is saved to find out."""

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
from nlp_transfer.run.folder import LOCK, RunFolder
from nlp_transfer.run.outputs import save, save_job
from nlp_transfer.security.file_locks import Lock, lock_now
from nlp_transfer.settings import registry
from nlp_transfer.settings.registry import is_user_defined
from nlp_transfer.strategies import Job, Strategy
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import DiskFullError
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import compute_on_main, same_random_state
from nlp_transfer.utils.errors import UserError, brief, first_line

PREFIX = ".trial-"


def check_saving(strategy: Strategy, job: Job, model: Any, output_dir: Path, accelerator: Accelerator) -> None:
    """Save a copy of the untrained model as the finished run will be saved, read it again and compare their logits.

    Call it after `Strategy.wrap` and before `prepare_data`. The model and all random states stay as they are, and nothing is
    left in `output_dir`.

    Raises:
        UserError: it cannot be saved, cannot be read again, or gives other logits then.
    """

    def attempt(folder: Path) -> None:
        _check_class(job.task)
        wrapped, copied = _copy(strategy, model)
        save(wrapped, job, copied, RunFolder(str(folder)), accelerator)

    _try(attempt, job.task, model, output_dir, accelerator)


def check_saving_further(jobs: Mapping[str, tuple[Job, Any]], output_dir: Path, accelerator: Accelerator) -> None:
    """The same for what is learned beside the run's own task; call it after `prepare_data`."""
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
                    return  # what is broken is the checkpoint; training stops at it, and names step and rows
                raise UserError(_explain(task, model, error, folder)) from error

    compute_on_main(accelerator, run)


def _explain(task: Task, model: Any, error: Exception, folder: Path) -> str:
    reason = brief(str(error)) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    reason = reason.replace(f"{folder}/", "")
    name, kind = task_name(task), type(model).__name__
    advice = (
        f"{name}.build_model must build the same {kind} again from the configuration and the weights that were saved, its "
        "outputs must have `logits`, and its class must be one that another process can import"
        if is_user_defined(task) or is_user_defined(model)
        else "choose another strategy, or another task.head"
    )
    return (
        f"task: {name} gives a {kind} that cannot be saved and read again, so nothing was trained. The untrained model was saved "
        f"to try it: {reason}. What to do: {advice}"
    )


def _check_class(task: Task) -> None:
    """Raise a UserError where no process could find the task's class by its name; say where only this one can."""
    name = task_name(task)
    if ":" not in name:
        return
    registry.load("task", name)
    if name.startswith("__main__:"):
        say(
            f"note: {name} is a class of this script. To open the saved model in another process put it into a file and give "
            "that with --code FILE.py, or pass the class: load_predictor(MODEL, task=...)"
        )


def _copy(strategy: Strategy, model: Any) -> tuple[Strategy, Any]:
    """Copies of both, made together: a strategy may hold handles of hooks in the model. Its settings, which may be whole tables,
    are shared."""
    parts = getattr(strategy, "parts", (strategy,))
    memo = {id(value): value for part in parts for value in vars(part).values()}
    found: tuple[Strategy, Any] = copy.deepcopy((strategy, model), memo)
    return found


@contextmanager
def _trial_folder(output_dir: Path) -> Iterator[Path]:
    """A folder inside `output_dir`, removed afterwards together with folders that were made for it.

    What an attempt left that was killed is removed as well; the lock tells it from that of a process at work.
    """
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
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
        for empty in made:
            with suppress(OSError):  # another process works in it by now
                empty.rmdir()


def remove_stale(output_dir: Path) -> None:
    """Remove what trials left that were killed."""
    for folder in output_dir.glob(f"{PREFIX}*"):
        with suppress(OSError, UserError), _lock(folder, create=False):  # another folder, or of a process at work
            shutil.rmtree(folder)


def _lock(folder: Path, create: bool = True) -> Lock:
    return lock_now(folder / LOCK, f"{folder}: another process is at work in it", "what a killed trial leaves stays", create)

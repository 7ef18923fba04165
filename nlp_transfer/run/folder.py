"""A run's folder: claimed only when all is known to be well, and never mixed up with another run's."""

import math
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from accelerate.utils import gather_object

from nlp_transfer.data.sources.portable_paths import mapping
from nlp_transfer.run.document import read_document
from nlp_transfer.run.provenance import compare_content, describe_changes
from nlp_transfer.saved_models.layout import RUN_FILES
from nlp_transfer.security.file_locks import Lock, lock_now
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main, rank, world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

Resume = Literal["auto", "must", "never"]

LOCK = ".lock"
WINDOW = ("training.batch_size", "training.batch_tokens", "training.gradient_accumulation_steps", "provenance.processes")
HOW = (
    *(f"training.{name}" for name in ("checkpoint_every", "keep_checkpoints", "process_timeout", "logging_steps", "trackers")),
    "data.token_cache",
)
"""Settings that change nothing of what is learned."""
ROUNDING = ("training.attention", "training.kernels")
"""Settings by which results differ as far as rounding does; what is chosen for them depends on the machine."""


class RunFolder:
    """`output_dir` of a run: new, unfinished (then it is gone on with) or finished (then it is refused).

    While it is entered no other process can begin or go on in it.

    Args:
        resume: `auto`: go on where a run is unfinished, else begin; `must`, `never`: only the one, or only the other.
    """

    def __init__(self, path: str, resume: Resume = "auto") -> None:
        self.path = expand(path)
        self.resume = resume
        self._lock: Lock | None = None
        self._own_lock = False  # the file was not there before

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release(remove=self._own_lock or not self.unfinished)
            self._lock = None

    def check(self) -> None:
        """Raises a UserError when a run may not be written here; nothing is created."""
        if self.resume not in get_args(Resume):
            raise UserError(f"resume: found {self.resume!r}; allowed: {', '.join(get_args(Resume))}")
        try:
            self._check()
        except OSError as error:  # a name that is too long, say
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}; allowed: another folder") from None

    def _check(self) -> None:
        if (self.path / "result.json").exists():
            raise UserError(
                f"output_dir: {self.path} already holds a finished run; give another output_dir, or remove the folder"
            )
        if self.resume == "must" and not self.unfinished:
            raise UserError(f"resume: found must; {self.path} holds no unfinished run; allowed: auto, or another output_dir")
        if self.resume == "never" and self.unfinished:
            raise UserError(
                f"resume: found never; {self.path} holds an unfinished run; remove the folder to begin anew, or give another "
                "output_dir; auto goes on with it"
            )
        own = [name for name in RUN_FILES if os.path.lexists(self.path / name)]
        if own and not self.unfinished:
            raise UserError(f"output_dir: {self.path} already holds {', '.join(own)}; give another output_dir")
        foreign = [name for name in own if stat.S_IFMT((self.path / name).lstat().st_mode) != _kind_of(name)]
        if foreign:  # what stands behind a link is not this run's to write or to remove
            raise UserError(
                f"output_dir: {self.path} holds {', '.join(foreign)} as a link, a pipe or the like; allowed: files and "
                "folders of the run itself; to use another disk, make the whole output_dir a link"
            )
        existing = next((folder for folder in (self.path, *self.path.absolute().parents) if folder.exists()), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"output_dir: {self.path} cannot be written: {existing} is no folder that this user may write in; allowed: a "
                "folder that can be created or written"
            )

    @property
    def unfinished(self) -> bool:
        return (self.path / "config.yaml").is_file() and not (self.path / "result.json").exists()

    def begin(self, document: dict[str, Any]) -> None:
        """Creates and locks the folder and writes `config.yaml`; where a run is unfinished its settings must be the same.

        Raises:
            UserError: other settings than before, another process is at work there, or the folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._claim()
            if self.unfinished:
                self._compare(read_document(self.path / "config.yaml"), document)
                return
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
            write_bytes(self.path / "config.yaml", text.encode())
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error}") from error

    def _claim(self) -> None:
        place = self.path / LOCK
        self._own_lock = not place.exists()
        self._lock = lock_now(
            place,
            f"output_dir: another process is at work in {self.path}; wait until it ends, or give another output_dir",
            "nothing keeps a second run out of it",
        )
        self._check()  # the process that held it may have finished the run

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        problems = Problems(
            f"output_dir: {self.path} holds an unfinished run with other settings; finish it, or give another output_dir"
        )
        same, others = compare_content(mapping(before.get("provenance")), now["provenance"])
        problems.extend(f"{line}; restore it to resume" for line in describe_changes(others))
        found = [one for one in differences(before, now) if not is_place(one[0], [*same, *others])]
        if _window(before) == _window(now):  # however it is cut, each optimiser step sees the same rows
            changed = [f"{name} {old} before, {new} now" for name, old, new in found if name in WINDOW]
            say(*(f"{line}; each step sees the same rows" for line in changed))
            found = [one for one in found if one[0] not in WINDOW]
        for name, old, new in found:
            if name in HOW:
                continue
            if name in ROUNDING or name.startswith("provenance.versions."):
                say(f"warning: {name.rpartition('.')[2]} {old} before, {new} now; figures may differ in their last digits")
            else:
                problems.add(f"{name}: {shorten(old)} before, {shorten(new)} now")
        problems.raise_if_any()

    def clear_checkpoints(self) -> None:
        """A finished run needs none: `model/` holds its best weights."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


def _kind_of(name: str) -> int:
    """Return the kind of one of `RUN_FILES`: a regular file if its name has an extension, otherwise a folder."""
    return stat.S_IFREG if "." in name else stat.S_IFDIR


def check_same_on_all(document: dict[str, Any]) -> None:
    """Refuse a run whose processes read other data or settings than rank 0: each would compute gradients of its own model.

    Where data and models lie may differ: they are compared by content.

    Raises:
        UserError: the resolved settings or inputs of a process are not those of rank 0; all processes raise it.
    """
    if world_size() == 1:
        return
    first, inputs = broadcast_from_main(document), mapping(document["provenance"].get("content"))
    messages = [
        f"{name}: {shorten(other)} on rank 0, {shorten(own)} on rank {rank()}; allowed: the same in all processes"
        for name, other, own in differences(first, document)
        if not name.startswith("provenance.versions.") and not is_place(name, inputs)
    ]
    others = mapping(first["provenance"].get("content"))
    messages += [
        f"{name}: its content on rank {rank()} is not that of rank 0; allowed: the same in all processes"
        for name in {*inputs, *others}
        if inputs.get(name) != others.get(name)
    ]
    problems = Problems("the processes have different settings or data")
    problems.extend(gather_object(messages))
    problems.raise_if_any()


def _window(document: dict[str, Any]) -> tuple[bool, Any]:
    """What an optimiser step sees: whether tokens are counted, and how much of them or of rows in all."""
    try:
        training, processes = document["training"], document["provenance"]["processes"]
        tokens = training["batch_tokens"]
        factors = [tokens or training["batch_size"], training["gradient_accumulation_steps"], processes]
    except (KeyError, TypeError):
        return False, None
    return tokens is not None, math.prod(factors) if all(type(factor) is int for factor in factors) else None


def is_place(name: str, compared: Iterable[str]) -> bool:
    """Whether a setting says only where something is: `compared` are the settings whose files are compared by content."""
    places = ("output_dir", "provenance.directory", "provenance.files", "provenance.content", *compared)
    return any(name == place or name.startswith(f"{place}.") for place in places)


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for name in sorted({*before, *now}, key=str)
            for found in differences(before.get(name), now.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if before == now else [(prefix, before, now)]

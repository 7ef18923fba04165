"""Check, create and lock the output folder of a run, and compare the settings of an unfinished run with the new ones."""

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
from nlp_transfer.saved_models.layout import RUN_FILES, STRATEGY_CHOICE
from nlp_transfer.security.file_locks import Lock, lock_now
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import say
from nlp_transfer.utils.distributed import broadcast_from_main, rank, world_size
from nlp_transfer.utils.environment import expand
from nlp_transfer.utils.errors import Problems, UserError, shorten

Resume = Literal["auto", "must", "never"]

LOCK = ".lock"
BATCH_SETTINGS = ("training.batch_size", "training.batch_tokens", "training.gradient_accumulation_steps", "provenance.processes")
UNCOMPARED = (
    *(f"training.{name}" for name in ("checkpoint_every", "keep_checkpoints", "process_timeout", "logging_steps", "trackers")),
    "data.token_cache",
)
"""Settings that do not affect the trained weights."""
ROUNDING = ("training.attention", "training.kernels")
"""Settings that only affect rounding. Their automatic values depend on the machine."""


class RunFolder:
    """The `output_dir` of a run. `begin` locks it, and leaving the context releases the lock.

    Args:
        resume: `auto` resumes an unfinished run or starts a new one; `must` only resumes; `never` only starts.
    """

    def __init__(self, path: str, resume: Resume = "auto") -> None:
        self.path = expand(path)
        self.resume = resume
        self._lock: Lock | None = None
        self._created_lock = False

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release(remove=self._created_lock or not self.unfinished)
            self._lock = None

    def check(self) -> None:
        """Check that the run can be started or resumed here, without creating anything.

        Raises:
            UserError: the folder contains a finished run or other files, is not writable, or does not agree with `resume`.
        """
        if self.resume not in get_args(Resume):
            raise UserError(f"resume: found {self.resume!r}; allowed: {', '.join(get_args(Resume))}")
        try:
            self._check()
        except OSError as error:  # such as a name that is too long
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
                f"resume: found never; {self.path} holds an unfinished run; remove the folder to start again, give another "
                "output_dir, or use auto to resume it"
            )
        present = [name for name in RUN_FILES if os.path.lexists(self.path / name)]
        if set(present) - {STRATEGY_CHOICE} and not self.unfinished:
            raise UserError(f"output_dir: {self.path} already holds {', '.join(present)}; give another output_dir")
        foreign = [name for name in present if stat.S_IFMT((self.path / name).lstat().st_mode) != _kind_of(name)]
        if foreign:  # such as a link to a file of another user
            raise UserError(
                f"output_dir: {self.path} contains {', '.join(foreign)} as a link, pipe or other special file; allowed: regular "
                "files and folders; to use another disk, make output_dir itself a link"
            )
        existing = next((folder for folder in (self.path, *self.path.absolute().parents) if folder.exists()), Path("/"))
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"output_dir: {self.path} cannot be written: {existing} is not a folder that this user may write to; give "
                "another output_dir"
            )

    @property
    def unfinished(self) -> bool:
        """Whether the folder contains an unfinished run."""
        return (self.path / "config.yaml").is_file() and not (self.path / "result.json").exists()

    def reserve(self) -> None:
        """Create and lock the folder.

        Raises:
            UserError: another process uses the folder, or it cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._take_lock()
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error}") from error

    def begin(self, document: dict[str, Any]) -> None:
        """Create and lock the folder and write `config.yaml`, or check that an unfinished run has the same settings.

        Args:
            document: the content of `config.yaml`.

        Raises:
            UserError: the settings differ, another process uses the folder, or it cannot be created.
        """
        self.reserve()
        try:
            if self.unfinished:
                self._compare(read_document(self.path / "config.yaml"), document)
                return
            text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
            write_bytes(self.path / "config.yaml", text.encode())
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error}") from error

    def _take_lock(self) -> None:
        lock_file = self.path / LOCK
        self._created_lock = not lock_file.exists()
        self._lock = lock_now(
            lock_file,
            f"output_dir: another process is using {self.path}; wait until it ends, or give another output_dir",
            "a second run could write to it at the same time",
        )
        self._check()  # again: the previous holder of the lock may have finished the run

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        problems = Problems(
            f"output_dir: {self.path} holds an unfinished run with other settings; finish it, or give another output_dir"
        )
        same, others = compare_content(mapping(before.get("provenance")), now["provenance"])
        problems.extend(f"{line}; restore it to resume" for line in describe_changes(others))
        changes = [change for change in differences(before, now) if not is_location(change[0], [*same, *others])]
        if _rows_of_step(before) == _rows_of_step(now):
            lines = [f"{name} {old} before, {new} now" for name, old, new in changes if name in BATCH_SETTINGS]
            say(*(f"{line}; each step sees the same rows" for line in lines))
            changes = [change for change in changes if change[0] not in BATCH_SETTINGS]
        for name, old, new in changes:
            if name in UNCOMPARED:
                continue
            if name in ROUNDING or name.startswith("provenance.versions."):
                say(f"warning: {name.rpartition('.')[2]} {old} before, {new} now; results may differ by rounding")
            else:
                problems.add(f"{name}: {shorten(old)} before, {shorten(new)} now")
        problems.raise_if_any()

    def clear_checkpoints(self) -> None:
        """Delete the checkpoints of a finished run; `model/` contains its best weights."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


def _kind_of(name: str) -> int:
    """Return the file type of an entry of `RUN_FILES`: a regular file if the name has an extension, otherwise a folder."""
    return stat.S_IFREG if "." in name else stat.S_IFDIR


def check_same_on_all(document: dict[str, Any]) -> None:
    """Check that all processes of a run have the same settings and inputs as rank 0.

    Inputs are compared by content; their paths may differ.

    Args:
        document: the content of `config.yaml` in this process.

    Raises:
        UserError: a process differs from rank 0. All processes raise this error.
    """
    if world_size() == 1:
        return
    first, inputs = broadcast_from_main(document), mapping(document["provenance"].get("content"))
    messages = [
        f"{name}: {shorten(other)} on rank 0, {shorten(local)} on rank {rank()}; allowed: the same in all processes"
        for name, other, local in differences(first, document)
        if not name.startswith("provenance.versions.") and not is_location(name, inputs)
    ]
    others = mapping(first["provenance"].get("content"))
    messages += [
        f"{name}: its content on rank {rank()} differs from that on rank 0; allowed: the same in all processes"
        for name in {*inputs, *others}
        if inputs.get(name) != others.get(name)
    ]
    problems = Problems("the processes have different settings or data")
    problems.extend(gather_object(messages))
    problems.raise_if_any()


def _rows_of_step(document: dict[str, Any]) -> tuple[bool, Any]:
    """Return whether `batch_tokens` is set, and how many tokens or rows all processes together use in an optimizer step."""
    try:
        training, processes = document["training"], document["provenance"]["processes"]
        tokens = training["batch_tokens"]
        factors = [tokens or training["batch_size"], training["gradient_accumulation_steps"], processes]
    except (KeyError, TypeError):
        return False, None
    return tokens is not None, math.prod(factors) if all(type(factor) is int for factor in factors) else None


def is_location(name: str, compared: Iterable[str]) -> bool:
    """Return whether a setting is a path or hash that may differ between runs.

    Args:
        compared: names of settings whose files are compared by content instead.
    """
    locations = ("output_dir", "provenance.directory", "provenance.files", "provenance.content", *compared)
    return any(name == location or name.startswith(f"{location}.") for location in locations)


def differences(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted name, old value, new value) of every setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            difference
            for name in sorted({*before, *now}, key=str)
            for difference in differences(before.get(name), now.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if before == now else [(prefix, before, now)]

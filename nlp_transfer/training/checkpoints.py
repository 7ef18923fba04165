"""Checkpoint files in safetensors and JSON, written atomically with a manifest of hashes. Nothing is unpickled.

checkpoints/
  step-120/      model.safetensors, optimizer.safetensors, [average.safetensors, callbacks.safetensors], state.json, manifest.json
  last, best     text files that contain the name of a checkpoint
"""

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nlp_transfer.models.verification.weight_files import stored_shapes
from nlp_transfer.security.file_locks import OLD, PART, read_record, remove
from nlp_transfer.utils.atomic_files import replacing, replacing_folder, sync
from nlp_transfer.utils.checksums import sha256_of

Tensors = dict[str, torch.Tensor]

REMOVED = re.compile(r"\.part-step-[0-9]+")  # a checkpoint that is being deleted
MAX_POINTER, MAX_MANIFEST = 2**10, 2**20  # bytes


def write_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensors], state: dict[str, Any], best: bool, number: int = 1
) -> Path:
    """Write the checkpoint `step-N` atomically, then delete old ones.

    The newest `number` checkpoints are kept, and so are the best checkpoints that these refer to (`best_step` in `state.json`).

    Args:
        folder: `checkpoints/` of the run.
        step: optimizer steps taken.
        tensors: content of each safetensors file, by file name without extension.
        state: content of `state.json`.
        best: whether the file `best` also names this checkpoint. The file `last` always does.
        number: number of newest checkpoints to keep.

    Returns:
        The folder of the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step}"
    remove_leftovers(folder)
    with replacing_folder(target, shared=True) as temporary:  # safe, since this process has locked the run
        for name, values in tensors.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in values.items()}, temporary / f"{name}.safetensors"
            )
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
        hashes = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    write_pointer(folder, "last", target.name)
    if best:
        write_pointer(folder, "best", target.name)
    sync(folder)
    remaining = _steps(folder)[:number]
    remaining += [f"step-{best_step}" for name in remaining if (best_step := _best_step(folder / name))]
    for name in set(_steps(folder)) - {*remaining, read_pointer(folder, "best"), read_pointer(folder, "last")}:
        os.replace(folder / name, folder / f".part-{name}")  # a half-deleted folder would look like a damaged checkpoint
    remove_leftovers(folder)
    return target


def remove_leftovers(folder: Path) -> None:
    """Remove the leftovers of an interrupted write or deletion."""
    for path in (*folder.glob(".part-*"), *folder.glob(".old-*")):
        if any(pattern.fullmatch(path.name) for pattern in (PART, OLD, REMOVED)):
            remove(path)


def _steps(folder: Path) -> list[str]:
    """Return the names of the checkpoints, newest first."""
    names = [path.name for path in folder.glob("step-*") if re.fullmatch("step-(0|[1-9][0-9]{0,17})", path.name)]
    return sorted(names, key=lambda name: -int(name.removeprefix("step-")))


def _best_step(path: Path) -> int:
    """Return `best_step` of a checkpoint, or 0 if `state.json` does not contain it or cannot be read."""
    try:
        return int(json.loads(read_record(path / "state.json"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0


def write_pointer(folder: Path, name: str, target: str) -> None:
    """Write `target` into the pointer file `name`, atomically."""
    with replacing(folder / name, shared=True) as file:
        file.write(target.encode())


def read_pointer(folder: Path, name: str) -> str | None:
    """Return the content of a pointer file, or None if it cannot be read."""
    try:
        return read_record(folder / name, MAX_POINTER).decode().strip()
    except (OSError, UnicodeError):
        return None


def newest_intact(folder: Path, fault: Callable[[Path], str | None] | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint without a fault, and a warning for each newer one that was skipped.

    Args:
        fault: returns a reason not to use a checkpoint, or None. Default: `find_damage`.
    """
    notes: list[str] = []
    for path in (folder / name for name in _steps(folder)):
        reason = (fault or find_damage)(path)
        if reason is None:
            return path, notes
        notes.append(f"warning: checkpoint {path} is skipped: {reason}")
    return None, notes


def find_damage(path: Path) -> str | None:
    """Compare a checkpoint with its manifest. Return a description of the damage, or None."""
    if path.is_symlink():
        return "it is a link"
    try:
        hashes = dict(json.loads(read_record(path / "manifest.json", MAX_MANIFEST)))
        modes = {entry.name: entry.lstat().st_mode for entry in path.iterdir()}
    except (OSError, ValueError, TypeError, RecursionError):
        return "manifest.json is missing or unreadable"
    if "state.json" not in hashes:
        return "manifest.json does not list state.json"
    for name in (*hashes, *(name for name in modes if name.endswith(".safetensors"))):
        if not stat.S_ISREG(modes.get(name, stat.S_IFREG)):
            return f"{name} is not a regular file"
    for name, digest in hashes.items():
        if name not in modes:
            return f"{name} is missing"
        if sha256_of(path / name) != digest:
            return f"{name} has changed since it was written (its hash differs)"
    return None


def read_tensors(path: Path, name: str) -> Tensors:
    """Return the tensors of `NAME.safetensors`; an empty dict if there is no such file."""
    file = path / f"{name}.safetensors"
    try:
        return load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise RuntimeError(f"{file}: cannot be read ({error})") from error


def tensor_names(path: Path, name: str) -> list[str]:
    """Return the names of the tensors in `NAME.safetensors`; none if there is no such file."""
    file = path / f"{name}.safetensors"
    return list(stored_shapes(file)) if file.is_file() else []

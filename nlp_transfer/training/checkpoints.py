"""Checkpoints: written beside, synced, renamed, with a manifest of hashes. safetensors and JSON, nothing is unpickled.

checkpoints/
  step-120/      model.safetensors, optimizer.safetensors, [average.safetensors], state.json, manifest.json
  last, best     small files with the name of a folder
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

from nlp_transfer.data.sources.wheels import sha256_of
from nlp_transfer.security.file_locks import OLD, PART, read_own, remove
from nlp_transfer.utils.atomic_files import replacing, replacing_folder, sync

Tensors = dict[str, torch.Tensor]

MOVED = re.compile(r"\.part-step-[0-9]+")  # a checkpoint on its way out
LONGEST_POINTER, LONGEST_MANIFEST = 2**10, 2**20  # bytes


def write_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensors], state: dict[str, Any], best: bool, number: int = 1
) -> Path:
    """Writes `step-N` whole or not at all, points `last` (and `best`) at it, and removes what nothing needs any more: all but
    the newest `number` and the best weights that each of them knows (`best_step` in its state)."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step}"
    remove_leftovers(folder)
    with replacing_folder(target, shared=True) as part:  # the run's lock is held
        for name, values in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, part / f"{name}.safetensors")
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        hashes = {path.name: sha256_of(path) for path in sorted(part.iterdir())}
        (part / "manifest.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    write_pointer(folder, "last", target.name)
    if best:
        write_pointer(folder, "best", target.name)
    sync(folder)
    kept = _steps(folder)[:number]
    kept += [f"step-{best_step}" for name in kept if (best_step := _best_step(folder / name))]
    for name in set(_steps(folder)) - {*kept, read_pointer(folder, "best"), read_pointer(folder, "last")}:
        os.replace(folder / name, folder / f".part-{name}")  # gone at once: half a folder would look like a damaged checkpoint
    remove_leftovers(folder)
    return target


def remove_leftovers(folder: Path) -> None:
    """Remove what an interrupted write or removal left, and no other file or folder."""
    for path in (*folder.glob(".part-*"), *folder.glob(".old-*")):
        if any(pattern.fullmatch(path.name) for pattern in (PART, OLD, MOVED)):
            remove(path)


def _steps(folder: Path) -> list[str]:
    """Names of the checkpoints, the newest first."""
    names = [path.name for path in folder.glob("step-*") if re.fullmatch("step-(0|[1-9][0-9]{0,17})", path.name)]
    return sorted(names, key=lambda name: -int(name.removeprefix("step-")))


def _best_step(path: Path) -> int:
    """The step of the best weights that a checkpoint knows; 0 where it cannot be read, or knows none."""
    try:
        return int(json.loads(read_own(path / "state.json"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0


def write_pointer(folder: Path, name: str, target: str) -> None:
    """Makes the pointer file `name` say `target`, atomically."""
    with replacing(folder / name, shared=True) as file:
        file.write(target.encode())


def read_pointer(folder: Path, name: str) -> str | None:
    """The content of a pointer file, or None where there is none that can be read."""
    try:
        return read_own(folder / name, LONGEST_POINTER).decode().strip()
    except (OSError, UnicodeError):
        return None


def newest_intact(folder: Path, fault: Callable[[Path], str | None] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint without a fault, and notes on those that were passed over.

    Args:
        fault: a reason not to use a checkpoint, or None; by default what is wrong with its files (`find_damage`).
    """
    notes: list[str] = []
    for path in (folder / name for name in _steps(folder)):
        broken = (fault or find_damage)(path)
        if broken is None:
            return path, notes
        notes.append(f"warning: checkpoint {path} is passed over: {broken}")
    return None, notes


def find_damage(path: Path) -> str | None:
    """A reason not to trust a checkpoint, or None."""
    if path.is_symlink():
        return "it is a link"
    try:
        hashes = dict(json.loads(read_own(path / "manifest.json", LONGEST_MANIFEST)))
        modes = {entry.name: entry.lstat().st_mode for entry in path.iterdir()}
    except (OSError, ValueError, TypeError, RecursionError):
        return "manifest.json is missing or unreadable"
    if "state.json" not in hashes:
        return "manifest.json does not name state.json"
    for name in (*hashes, *(name for name in modes if name.endswith(".safetensors"))):
        if not stat.S_ISREG(modes.get(name, stat.S_IFREG)):
            return f"{name} is not a regular file"
    for name, digest in hashes.items():
        if name not in modes:
            return f"{name} is missing"
        if sha256_of(path / name) != digest:
            return f"{name} is not what was written (its hash differs)"
    return None


def read_tensors(path: Path, name: str) -> Tensors:
    """The tensors of one file, or none where the checkpoint has no such file."""
    file = path / f"{name}.safetensors"
    try:
        return load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise RuntimeError(f"{file}: cannot be read ({error})") from error

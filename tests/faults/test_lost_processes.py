"""Distributed training in two processes when one of them is interrupted or lost."""

from pathlib import Path

import pytest

from nlp_transfer import fine_tune
from nlp_transfer.training import checkpoints
from tests.builders import sentiment_rows, write
from tests.helpers.processes import launch_pair

pytestmark = pytest.mark.process

JOBS = "tests.helpers.children.lost_jobs"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "train.csv", list(sentiment_rows(50)))


def test_a_signal_ends_both_processes_after_one_step(tiny: dict[str, Path], source: Path, tmp_path: Path) -> None:
    launch_pair(JOBS, "both_stop", tiny["bert"], source, tmp_path)
    assert (tmp_path / "broken/result.json").exists()


@pytest.mark.parametrize("job", ["one_ends", "one_hangs"])
def test_a_run_resumes_after_losing_a_process(job: str, tiny: dict[str, Path], source: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="lost_jobs"):
        launch_pair(JOBS, job, tiny["bert"], source, tmp_path)
    message = (tmp_path / "message.txt").read_text()
    assert message.startswith("step 6: another process has ended or did not respond")
    assert message.endswith("resume from the checkpoint of step 4")
    assert checkpoints.read_pointer(tmp_path / "broken/checkpoints", "last") == "step-4"
    settings = {"epochs": 3, "batch_size": 8, "checkpoint_every": 2, "evaluate_every": 3, "logging_steps": 1}
    timeout = {"process_timeout": 6} if job == "one_hangs" else {}
    done = fine_tune(  # in one process, with the same rows per step
        model=str(tiny["bert"]), data={"train": str(source)}, task="text_classification", training=settings | timeout,
        output_dir=str(tmp_path / "broken"), with_report=False,
    )  # fmt: skip
    assert done.result["train"]["steps"] == 18

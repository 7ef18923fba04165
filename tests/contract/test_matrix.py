"""Every strategy with every task: saved and read again elsewhere, interrupted, shared by two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nlp_transfer import UserError, fine_tune, load_predictor, load_translator
from tests.builders import stopped_at
from tests.contract.test_round_trip import logits_of
from tests.helpers.children.matrix_jobs import CUT, TWICE, run
from tests.helpers.processes import CHILDREN, in_child, launch_pair
from tests.helpers.strategies import CASES, COMPUTED, GENERATING, IMPOSSIBLE, document, files, rows_of

pytestmark = pytest.mark.process

HEADS = {"entities": "TokenClassification", "question_answering": "QuestionAnswering"}  # of models that do not classify texts


def name_of(case: tuple[str, str]) -> str:
    return "-".join(case)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


class Runs(dict[tuple[str, str], dict[str, Any]]):
    """Uninterrupted runs by this process alone, made when they are first asked for."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        super().__init__()
        self.checkpoint, self.folder = checkpoint, folder

    def __missing__(self, case: tuple[str, str]) -> dict[str, Any]:
        with_report = case[0] == "full" or case[1] == "single"  # of every strategy, and of every task
        self[case] = run(case, self.checkpoint, self.folder, self.folder / "one" / name_of(case), with_report, **CUT)
        return self[case]


@pytest.fixture(scope="module")
def straight(folder: Path, tiny: dict[str, Path]) -> Runs:
    return Runs(tiny["bert"], folder)


def texts_of(task: str) -> list[tuple[str, ...]]:
    rows = rows_of(7, seed=3)
    other = {"pair": (0, 1), "question_answering": (1, 0)}
    return [tuple(str(row[i]) for i in other.get(task, (0,))) for row in rows]


@pytest.fixture(scope="module")
def child(straight: Runs, folder: Path) -> dict[str, Any]:
    """What another process, and plain transformers where that is promised, made of all that was saved."""
    jobs: dict[str, Any] = {"plain": {}, "deep": {}}
    for case in CASES:
        if case[1] not in GENERATING:
            place = folder / "one" / name_of(case) / "model"
            kind = "plain" if straight[case]["result"]["plain"] else "deep"
            job = {"folder": str(place), "texts": texts_of(case[1])}
            jobs[kind][name_of(case)] = job | ({"head": HEADS[case[1]]} if case[1] in HEADS else {})
    return in_child(CHILDREN / "plain_models.py", jobs, folder)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_only_declared_parameters_change(case: tuple[str, str], straight: Runs) -> None:
    found = straight[case]
    moved = {name for name, value in found["weights"].items() if not torch.equal(value, found["before"][name])}
    computed = {name for name in moved if name.startswith("classifier.")} if case[0] in COMPUTED else set()
    assert moved - computed == found["trained"] - computed
    assert moved or case[0] in COMPUTED, "something was learned"


@pytest.mark.parametrize("case", [case for case in CASES if case[1] not in GENERATING], ids=name_of)
def test_another_process_predicts_the_same(case: tuple[str, str], straight: Runs, child: dict[str, Any], folder: Path) -> None:
    ours = logits_of(load_predictor(folder / "one" / name_of(case)), texts_of(case[1]))
    assert torch.allclose(ours, torch.tensor(child[name_of(case)]["logits"]), atol=1e-5)
    assert float(ours.std(0).max()) > 1e-7, "answers that differ between texts"
    assert straight[case]["result"]["metrics"]["test"], "and it was scored"


def test_a_pipeline_finds_the_same_entities(straight: Runs, child: dict[str, Any], folder: Path) -> None:
    cases = [case for case in CASES if case[1] == "entities" and straight[case]["result"]["plain"]]
    assert cases
    for case in cases:
        predictor = load_predictor(folder / "one" / name_of(case), settings={"text": "text"})
        ours = [
            [{"entity_group": entity["label"], "start": entity["start"], "end": entity["end"]} for entity in row["prediction"]]
            for row in predictor([text for (text,) in texts_of("entities")])
        ]
        assert ours == child[name_of(case)]["pipeline"], case


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "translation"], ids=name_of)
def test_a_translation_model_translates(case: tuple[str, str], straight: Runs, folder: Path) -> None:
    assert straight[case]["result"]["train"]["steps"] > 0
    assert len(load_translator(folder / "one" / name_of(case))([text for (text,) in texts_of("single")])) == 7


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "summarization"], ids=name_of)
def test_a_summarization_model_predicts(case: tuple[str, str], straight: Runs, folder: Path) -> None:
    assert straight[case]["result"]["metrics"]["test"]["rougeL"] >= 0
    predictions = load_predictor(folder / "one" / name_of(case))([text for (text,) in texts_of("single")])
    assert [set(row) for row in predictions] == [{"prediction"}] * 7


@pytest.mark.parametrize("case", sorted(IMPOSSIBLE), ids=name_of)
def test_impossible_tasks_are_refused(case: tuple[str, str], tiny: dict[str, Path], folder: Path) -> None:
    output = folder / "impossible" / name_of(case)
    with pytest.raises(UserError, match="allowed"):
        fine_tune(**document(*case, tiny["bert"], files(folder / "data"), output, folder))
    assert not output.exists()


@pytest.mark.parametrize("case", [case for case in CASES if case[1] == "single"], ids=name_of)
def test_interrupted_run_equals_uninterrupted_run(
    case: tuple[str, str], straight: Runs, tiny: dict[str, Path], folder: Path
) -> None:
    if straight[case]["result"]["train"]["steps"] <= 2:
        return  # such as strategies that take no steps
    output = folder / "killed" / name_of(case)
    with stopped_at(2):
        run(case, tiny["bert"], folder, output, checkpoint_every=1, **CUT)
    assert not (output / "result.json").exists()
    again = run(case, tiny["bert"], folder, output, checkpoint_every=1, **CUT)
    for name, value in straight[case]["weights"].items():
        assert torch.equal(value, again["weights"][name]), name
    assert again["result"]["metrics"] == straight[case]["result"]["metrics"]


@pytest.fixture(scope="module")
def pair(folder: Path, tiny: dict[str, Path]) -> list[dict[Any, Any]]:
    """What two processes found that share the work; each its own."""
    files(folder / "data")
    launch_pair("tests.helpers.children.matrix_jobs", tiny["bert"], folder)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("case", TWICE, ids=name_of)
def test_two_processes_equal_one(case: tuple[str, str], straight: Runs, pair: list[dict[Any, Any]], folder: Path) -> None:
    one, first, second = straight[case], pair[0][case], pair[1][case]
    assert first["result"]["train"]["steps"] == one["result"]["train"]["steps"]
    assert first["result"]["metrics"] == second["result"]["metrics"]
    for name in one["weights"]:
        assert torch.equal(first["weights"][name], second["weights"][name]), name
    # Adam makes steps of full size of gradients that are nothing but rounding, so weights are compared by how far they went.
    way = sum(float((value - one["before"][name]).square().sum()) for name, value in one["weights"].items())
    apart = sum(float((value - first["weights"][name]).square().sum()) for name, value in one["weights"].items())
    assert apart**0.5 <= 0.03 * way**0.5
    for split, figures in one["result"]["metrics"].items():
        assert first["result"]["metrics"][split]["loss"] == pytest.approx(figures["loss"], rel=1e-2)

"""1 x 32, 4 x 8 and two processes x 16 are the same training: same gradient, weights, rows and metrics."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from nlp_transfer.inference.model_evaluation import evaluate_model
from nlp_transfer.training.gradient import WindowGradient
from tests.helpers.children import gradient_jobs as jobs
from tests.helpers.processes import launch_pair

pytestmark = pytest.mark.process

CLOSE = 1e-5


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / first.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equivalence")


@pytest.fixture(scope="module")
def whole(folder: Path, tiny: dict[str, Path]) -> dict[str, dict[int, torch.Tensor]]:
    """Gradients of 1 x 32."""
    source = jobs.data(folder / "data")
    return {name: jobs.gradient(tiny["bert"], source, name, folder / "whole", batch_size=32) for name in jobs.CASES}


@pytest.fixture(scope="module")
def learned(folder: Path, tiny: dict[str, Path]) -> Path:
    """A translation model, trained in one process."""
    jobs.learn(tiny["bert"], jobs.data(folder / "data"), folder / "learned")
    return folder / "learned"


@pytest.fixture(scope="module")
def pair(folder: Path, learned: Path, tiny: dict[str, Path]) -> list[dict[str, Any]]:
    """Results of two processes."""
    output = folder / "pair"
    output.mkdir()
    jobs.taught(tiny["bert"], jobs.data(folder / "data"))  # before both could make it
    launch_pair("tests.helpers.children.gradient_jobs", tiny["bert"], output)
    assert json.loads((output / "done.json").read_text()) == {"world_size": 2}
    return [torch.load(output / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def phases(folder: Path, tiny: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Several phases in one process."""
    source = jobs.data(folder / "data")
    return {name: jobs.in_phases(tiny["bert"], source, name, folder / "whole", 32) for name in jobs.PHASES}


def test_the_cases_reach_the_short_window(whole: dict[str, dict[int, torch.Tensor]]) -> None:
    assert jobs.ROWS % 32 not in (0, 16)
    assert all(set(found) == {0, 2} and found[0].norm() > 0 for found in whole.values())
    assert len(whole) >= 9


@pytest.mark.parametrize("name", list(jobs.CASES))
def test_accumulation_gives_the_same_gradient(
    name: str, whole: dict[str, dict[int, torch.Tensor]], folder: Path, tiny: dict[str, Path]
) -> None:
    source = jobs.data(folder / "data")
    cut = jobs.gradient(tiny["bert"], source, name, folder / "cut", batch_size=8, gradient_accumulation_steps=4)
    for step, expected in whole[name].items():
        assert difference(expected, cut[step]) <= CLOSE, f"step {step}"


@pytest.mark.parametrize("name", list(jobs.CASES))
def test_two_processes_give_the_same_gradient(
    name: str, whole: dict[str, dict[int, torch.Tensor]], pair: list[dict[str, Any]]
) -> None:
    for rank in (0, 1):
        for step, expected in whole[name].items():
            assert difference(expected, pair[rank][name][step]) <= CLOSE, f"rank {rank}, step {step}"


def test_translation_loss_averages_over_target_tokens(
    whole: dict[str, dict[int, torch.Tensor]], folder: Path, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of the mean over all target tokens, computed here in one forward pass."""
    expected: list[torch.Tensor] = []
    original = WindowGradient.backward

    def backward(self: WindowGradient, window: Any, at: Any) -> Any:
        model = self.model
        batch = self.table.batch(window.rows)
        labels = batch.pop("labels")
        logits = model(**batch).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=0.1)
        parameters = [p for p in model.parameters() if p.requires_grad]
        expected.append(torch.cat([part.flatten().double() for part in torch.autograd.grad(loss, parameters)]))
        return original(self, window, at)

    monkeypatch.setattr(WindowGradient, "backward", backward)
    source = jobs.data(folder / "data")
    found = jobs.gradient(tiny["bert"], source, "translation", folder / "plain", batch_size=8, gradient_accumulation_steps=4)
    assert len(expected) == 3
    for step in (0, 2):
        assert difference(expected[step], found[step]) <= CLOSE, f"step {step}"
        assert difference(expected[step], whole["translation"][step]) <= CLOSE, f"step {step}"


def test_mean_of_means_gives_another_gradient(
    whole: dict[str, dict[int, torch.Tensor]], folder: Path, tiny: dict[str, Path]
) -> None:
    """Target lengths differ enough between micro-batches for the tests above to detect it."""
    source, found = jobs.data(folder / "data"), {}
    for micro_batches in (1, 4):
        cut = {"batch_size": 32 // micro_batches, "gradient_accumulation_steps": micro_batches}
        with jobs.mean_of_means(micro_batches):
            output = folder / f"means-{micro_batches}"
            found[micro_batches] = jobs.gradient(tiny["bert"], source, "translation", output, **cut)
    for step, expected in whole["translation"].items():
        assert difference(expected, found[1][step]) <= CLOSE, "the mean of a single one is the right one"
        assert difference(expected, found[4][step]) > 1000 * CLOSE, f"step {step}"


def test_a_token_budget_gives_the_same_gradient(pair: list[dict[str, Any]], folder: Path, tiny: dict[str, Path]) -> None:
    source = jobs.data(folder / "data")
    one = jobs.gradient(tiny["bert"], source, "translation", folder / "budget", batch_tokens=jobs.BUDGET)
    cut = {"batch_tokens": jobs.BUDGET // 4, "gradient_accumulation_steps": 4}
    four = jobs.gradient(tiny["bert"], source, "translation", folder / "budget-cut", **cut)
    for step, expected in one.items():
        assert difference(expected, four[step]) <= CLOSE, f"step {step}"
        for rank in (0, 1):
            assert difference(expected, pair[rank]["token budget"][step]) <= CLOSE, f"rank {rank}, step {step}"


@pytest.mark.parametrize("job", list(jobs.PHASES))
def test_parameters_unfrozen_late_are_synchronized(job: str, pair: list[dict[str, Any]], phases: dict[str, Any]) -> None:
    first, second = (found[job]["weights"] for found in pair)
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = phases[job]
    assert alone["steps"] == pair[0][job]["steps"] == 9
    for count in ("examples", "tokens", "best_step"):
        assert alone[count] == pair[0][job][count] == pair[1][job][count] > 0, count
    for name, weight in alone["weights"].items():
        assert torch.allclose(weight, first[name], atol=1e-5), name
    for split, figures in alone["metrics"].items():
        assert figures == pytest.approx(pair[0][job]["metrics"][split], abs=1e-5)


def test_processes_agree_on_early_stopping(pair: list[dict[str, Any]], folder: Path, tiny: dict[str, Path]) -> None:
    alone = jobs.stops_early(tiny["bert"], jobs.data(folder / "data"), folder / "alone", 32)
    assert pair[0]["stops"] == pair[1]["stops"] == alone
    assert 0 < alone["best_step"] == alone["steps"] - 2 < 38, "it has stopped early"


def test_rank_0_decides_for_all_processes(pair: list[dict[str, Any]]) -> None:
    first, second = (found["decided"] for found in pair)
    assert first["choices"] == ("bf16", "bf16", "plain", "eager", 4, "of 0")
    assert second["choices"] == first["choices"]
    assert (first["metrics"], second["metrics"]) == (0.5, 0.5)
    assert (first["shared"], second["shared"]) == (4, 4)
    assert first["own"] == 4
    assert "step-4, which rank 1 cannot read" in second["own"], "it would have resumed from step 6"
    assert first["same"] == second["same"], "all processes end, before anything is written"
    assert "2 problems" in first["same"]
    assert "data.shots: 4 on rank 0, 5 on rank 1" in first["same"]
    assert "data.train: its content on rank 1 differs from that on rank 0" in first["same"]


def test_processes_agree_on_best_weights_in_memory(pair: list[dict[str, Any]]) -> None:
    first, second = (found["without folder"] for found in pair)
    assert first.keys() == second.keys()
    assert len(first) > 10
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", [*jobs.CASES, *jobs.PHASES])
def test_logs_are_equal(
    name: str, folder: Path, whole: dict[str, Any], phases: dict[str, Any], pair: list[dict[str, Any]]
) -> None:
    """Loss, gradient norm, and learning rate, which must not depend on the number of processes."""
    logs = []
    for base in ("whole", "pair"):
        lines = map(json.loads, (folder / base / name / "log.jsonl").read_text().splitlines())
        logs.append([line for line in lines if "loss" in line])
    assert len(logs[0]) == len(logs[1]) == (9 if name in jobs.PHASES else 3)
    for one, two in zip(*logs, strict=True):
        for figure in ("step", "epoch", "learning_rate"):
            assert one[figure] == two[figure], figure
        watched = {"translation": ("token_accuracy",)}.get(name, ())
        for figure in ("loss", "grad_norm", *watched):
            assert one[figure] == pytest.approx(two[figure], rel=1e-4), figure


FIGURES = {"pair/phases": ["accuracy"], "learned": ["token_accuracy", "bleu", "chrf", "ter"]}


@pytest.mark.parametrize("name", list(FIGURES))
def test_two_processes_score_the_same_rows(name: str, pair: list[dict[str, Any]], folder: Path) -> None:
    test = str(jobs.data(folder / "data")["test"])
    alone = evaluate_model(str(folder / name), {"data": {"test": test}}, 4, "fp32")[0]
    assert alone["rows"] == 21
    for how in ("file", "glob"):
        found = pair[0]["evaluate"][name][how]
        assert found == pair[1]["evaluate"][name][how] == pytest.approx(alone, abs=1e-9), how
    recorded = json.loads((folder / name / "result.json").read_text())["metrics"]["test"]
    for figure in FIGURES[name]:
        assert alone[figure] == pytest.approx(recorded[figure], abs=1e-9) != 0, figure


def test_two_processes_validate_the_same_translations(pair: list[dict[str, Any]], learned: Path, folder: Path) -> None:
    alone = jobs.drafts(learned, jobs.data(folder / "data"))
    assert set(alone) == {"token_accuracy", "bleu", "chrf", "loss"}, "some rows, so in brief"
    whole = json.loads((learned / "result.json").read_text())["metrics"]["test"]
    assert alone["token_accuracy"] == pytest.approx(whole["token_accuracy"], abs=1e-9), "over all rows"
    assert alone["chrf"] != pytest.approx(whole["chrf"]), "over six of them"
    assert pair[0]["drafts"] == pair[1]["drafts"] == pytest.approx(alone, abs=1e-6)

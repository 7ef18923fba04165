"""The saved model is the best one, even if it is from an earlier phase."""

import json
from pathlib import Path

import pytest

from nlp_transfer.strategies import Phase, State, Strategy, View
from tests.builders import run, sentiment_rows, write

pytestmark = pytest.mark.model


class GoodThenRuinous(Strategy):
    """Trains the head, then everything with a learning rate that ruins the model."""

    def next_phase(self, state: State, view: View) -> Phase | None:
        names = [name for name, _ in view.model.named_parameters()]
        head = tuple(name for name in names if name.startswith("classifier"))
        phases = [
            Phase("head", trainable=head, epochs=2),
            Phase("all", trainable=tuple(names), epochs=2, learning_rate_scale=300),
        ]
        return phases[len(state.finished)] if len(state.finished) < len(phases) else None


@pytest.mark.parametrize("ema", [None, 0.5])
def test_best_weights_of_an_earlier_phase_are_restored(ema: float | None, tiny: dict[str, Path], tmp_path: Path) -> None:
    done = run(
        model=tiny["bert"],
        data={"train": write(tmp_path / "train.csv", sentiment_rows(80)), "validation_share": None},
        strategy=GoodThenRuinous(),
        training={"max_steps": None, "batch_size": 16, "learning_rate": 1e-2, "best_metric": "loss", "ema": ema},
        output_dir=tmp_path / "run",
    )
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["validation"]["loss"] for line in lines if "validation" in line}
    best = done.result["train"]["best_step"]
    assert best < max(losses), "the last evaluation must be worse, or nothing is restored"
    assert losses[best] == min(losses.values())
    assert best <= 10, "the best lies in the first phase"
    assert done.metrics["validation"]["loss"] == pytest.approx(losses[best], abs=1e-6)

"""Fine-tuning from start to end: resolve, read, choose a strategy, encode, build, train, save, score, report."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlp_transfer.data.unused_settings import describe_unused
from nlp_transfer.hub.push import check_push, push_run
from nlp_transfer.inference.loading import load_predictor, load_translator
from nlp_transfer.inference.predictor import Predictor
from nlp_transfer.inference.translator import Translator
from nlp_transfer.run.folder import Resume, RunFolder
from nlp_transfer.run.resolve import resolve
from nlp_transfer.run.stages import build, encode, read, report, save, score, train
from nlp_transfer.run.strategy_choice import choose_strategy
from nlp_transfer.settings.base_settings import Document
from nlp_transfer.settings.launch_config import check_launch
from nlp_transfer.settings.schema import RunConfig
from nlp_transfer.tasks import Arrays
from nlp_transfer.training.callbacks import Callback, note_on_callbacks
from nlp_transfer.training.interruption import Signals
from nlp_transfer.training.trackers import finish_trackers
from nlp_transfer.utils.console import is_main, say


@dataclass(frozen=True)
class FineTuned:
    """A finished run: its folder and the content of its `result.json`."""

    output_dir: Path
    result: dict[str, Any]
    predictions: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """Predictions of each scored split, arrays of shape (rows, ...) by name. They are in memory and not part of `result`."""
    references: dict[str, Arrays] = field(default_factory=dict, compare=False, repr=False)
    """Targets of each scored split, arrays of shape (rows, ...) by name."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics by split and name."""
        metrics: dict[str, dict[str, float]] = self.result["metrics"]
        return metrics

    def predictor(self) -> Predictor:
        """Load the saved model for prediction."""
        return load_predictor(self.output_dir)

    def translator(self) -> Translator:
        """Load the saved translation model."""
        return load_translator(self.output_dir)


def fine_tune(
    config: RunConfig | Document | str | Path | None = None,
    *,
    resume: Resume = "auto",
    allow_hub_metrics: bool = False,
    push_to: str | None = None,
    metrics: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    with_report: bool = True,
    with_test: bool = True,
    **settings: Any,
) -> FineTuned:
    """Fine-tune a checkpoint on text; save and score the model in `output_dir`.

    Args:
        config: a YAML file, a document or typed settings. `settings` (model=, data=, task=, strategy=, training=, output_dir=)
            override it. `data` may contain pandas DataFrames and datasets.Dataset objects.
        resume: `auto` resumes an unfinished run in `output_dir`, or starts a new one if there is none. `must` requires an
            unfinished run; `never` requires that there is none.
        allow_hub_metrics: allow `training.hub_metrics` to download and run code from the hub.
        push_to: USER/NAME of the hub repository that the finished run is pushed to. Write access is checked before training. If
            the push fails, the finished run is kept.
        metrics: additional metrics for the validation and test splits. Each is a metric of the library `evaluate` or a function
            `f(predictions, references) -> {name: value}`, which is called with all rows of a split. `training.best_metric` may
            name one of the values. Higher is better, unless the metric has the attribute `higher_is_better = False`.
        callbacks: `Callback` objects that are called during training, after those of `training.callbacks`. They are not recorded
            in `config.yaml`.
        with_report: write `report.html` and the plots of the model card, and print the largest errors.
        with_test: score the test split. If not, its rows are still not trained on.

    Raises:
        UserError: settings or data are invalid. The message lists all problems; nothing is written.
        TrainingError: the loss is not finite, memory is insufficient, or another process has ended.
        DiskFullError: the disk stayed full for ten minutes.
        Interrupted: the process received SIGTERM or SIGINT, and saved the last step. A subclass of KeyboardInterrupt.
    """
    check_launch()
    run = resolve(config, metrics=metrics, callbacks=callbacks, **settings)
    say(*describe_unused(run.unused.items()), *note_on_callbacks(run.callbacks))
    with RunFolder(run.config.output_dir, resume) as folder, Signals(), ExitStack() as trackers:
        folder.check()
        if push_to and is_main():
            check_push(push_to)
        run = read(run, allow_hub_metrics, with_test)
        run = choose_strategy(run, folder)
        run = encode(run)
        run = build(run, folder)
        trackers.callback(finish_trackers, run.trainer.accelerator)
        run = train(run, folder)
        run = save(run, folder)
        run = score(run, folder)
        run = report(run, folder, with_report)
    if push_to and is_main():
        push_run(folder.path, push_to)
    return FineTuned(folder.path, run.result, run.predictions, run.references)

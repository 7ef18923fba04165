"""The story: data -> tokens -> checkpoint + head -> strategy -> train -> save -> evaluate."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed

from nlp_transfer import report
from nlp_transfer.config import Document, RunConfig
from nlp_transfer.console import say, show_metrics
from nlp_transfer.data.splits import Splits, read_splits
from nlp_transfer.data.tokens import TokenTable, encode_rows
from nlp_transfer.errors import UserError
from nlp_transfer.export.load import load_predictor, load_translator, quiet
from nlp_transfer.export.save import check_adapter, is_plain, save_model, versions
from nlp_transfer.inference import Predictor, score
from nlp_transfer.metrics import load_hub_metric
from nlp_transfer.models import Checkpoint, count_parameters
from nlp_transfer.resolve import Run, resolve
from nlp_transfer.run_folder import RunFolder
from nlp_transfer.sources import find_model
from nlp_transfer.tasks import Task
from nlp_transfer.training.device import finish_trackers, make_accelerator, resolve_precision
from nlp_transfer.training.loop import Trainer
from nlp_transfer.translator import Translator


@dataclass(frozen=True)
class FineTuned:
    """A finished run: where it lies and what it says of itself (`result.json`)."""

    output_dir: Path
    result: dict[str, Any]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Figures by split."""
        found: dict[str, dict[str, float]] = self.result["metrics"]
        return found

    def predictor(self) -> Predictor:
        """The saved model, ready to answer."""
        return load_predictor(self.output_dir)

    def translator(self) -> Translator:
        """The saved translation model, ready for use."""
        return load_translator(self.output_dir)


def fine_tune(
    config: RunConfig | Document | str | Path | None = None, *, allow_hub_metrics: bool = False, **settings: Any
) -> FineTuned:
    """Fine-tunes a checkpoint on text and leaves a saved, measured model in `output_dir`.

    Args:
        config: a YAML file, a document or typed settings; `settings` (model=, data=, task=, strategy=, training=,
            output_dir=) win over it. `data` may hold pandas DataFrames and datasets.Dataset objects.
        allow_hub_metrics: lets `training.hub_metrics` download and run foreign code.

    Raises:
        UserError: something in the settings or the data is wrong; all problems are listed and nothing is left behind.
        TrainingError: the loss is not a number.
    """
    run = resolve(config, **settings)
    training = run.config.training
    folder = RunFolder(run.config.output_dir)
    folder.check()
    foreign = [load_hub_metric(name, allow_foreign_code=allow_hub_metrics) for name in training.hub_metrics]
    set_seed(training.seed)

    checkpoint = Checkpoint.open(find_model(run.config.model))
    splits, task = read_splits(run.config.data, run.task, training, training.seed)
    say(*task.report(splits.rows["train"]), *splits.notes)
    task = task.prepare(checkpoint, splits.rows["train"])
    tables = _encode(splits, task, checkpoint)
    _foreign_figures(foreign, _right_answers(tables["train"]), tables["train"])  # better now than after training

    precision, reason = resolve_precision(training.precision, checkpoint.config.model_type)
    accelerator = make_accelerator(training, precision, folder.path)
    with quiet():
        model = run.strategy.wrap(task.build_model(checkpoint, training))
    tables = run.strategy.prepare_data(tables, model)
    trainer = Trainer(
        model, task, tables, strategy=run.strategy, training=training, accelerator=accelerator, output_dir=folder.path,
        describe=lambda rows: _describe(splits, rows),
    )  # fmt: skip
    say(*report.resolved_lines(trainer, reason))
    document = report.resolved_document(run, task, trainer, checkpoint, splits)
    if accelerator.is_main_process:
        folder.begin(document)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("nlp_transfer")

    parameters = count_parameters(model)
    position = trainer.train()
    memory = report.peak_memory()
    model = _save(run, task, model, checkpoint, tables, folder, accelerator)
    metrics: dict[str, dict[str, float]] = {}
    for split in [name for name in ("validation", "test") if name in tables]:
        metrics[split], answers = score(model, task, tables[split], accelerator, training.batch_size * 2)
        metrics[split] |= _foreign_figures(foreign, answers, tables[split])
    if metrics:
        say(*task.remarks(answers, tables[split].references))
    signatures = task.signatures()
    result = {
        "task": document["task"], "strategy": document["strategy"], "model": run.config.model, "seed": training.seed,
        "plain": is_plain(model), "metrics": metrics, "train": report.training_figures(position, parameters, memory),
        "versions": versions(), **({"signatures": signatures} if metrics and signatures else {}),
    }  # fmt: skip
    if accelerator.is_main_process:
        report.finish(folder, run, task, result, document, splits)
    accelerator.wait_for_everyone()
    finish_trackers(accelerator)
    show_metrics(metrics)
    say(f"the model is in {folder.path / 'model'}")
    return FineTuned(folder.path, result)


def _encode(splits: Splits, task: Task, checkpoint: Checkpoint) -> dict[str, TokenTable]:
    tokenizer = checkpoint.tokenizer
    tables = {}
    for name, rows in splits.rows.items():
        table = encode_rows(rows, lambda columns: task.encode(columns, tokenizer), task.fill(tokenizer))
        cut = f", {table.truncated / len(table):.1%} of rows cut to {task.max_length} tokens" if table.truncated else ""
        say(f"{name}: {len(table)} rows, {table.lengths.mean():.0f} tokens a row on average{cut}")
        tables[name] = table
    return tables


def _describe(splits: Splits, indices: np.ndarray) -> str:
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return "; ".join(splits.rows["train"].where(int(row)) for row in indices[:5]) + more


def _save(
    run: Run,
    task: Task,
    model: Any,
    checkpoint: Checkpoint,
    tables: dict[str, TokenTable],
    folder: RunFolder,
    accelerator: Accelerator,
) -> Any:
    """The model that anyone can load, as read again from `model/`. Only the main process leaves files."""
    if not accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as elsewhere:
            return run.strategy.unwrap(model, Path(elsewhere))
    shutil.rmtree(folder.path / "model", ignore_errors=True)
    with quiet():
        plain = run.strategy.unwrap(model, folder.path)
    probe = tables["train"].batch(np.arange(min(4, len(tables["train"]))))
    saved = save_model(plain, checkpoint.tokenizer, task, folder.path / "model", probe)
    if (folder.path / "adapter").is_dir():
        check_adapter(folder.path / "adapter", checkpoint, task, plain, probe)
    return saved


def _right_answers(table: TokenTable) -> dict[str, np.ndarray]:
    """What a perfect model would answer: texts where there are such, else label ids or numbers."""
    found = table.references
    return {"prediction": found["references"] if "references" in found else found["labels"]}


def _foreign_figures(metrics: list[Any], answers: dict[str, np.ndarray], table: TokenTable) -> dict[str, float]:
    """Figures of hub metrics, as `METRIC/KEY`: some have a key that ours have too, and mean something else by it.

    Raises:
        UserError: a metric cannot be computed for this task, or gives something other than numbers.
    """
    found: dict[str, float] = {}
    for metric in metrics:
        try:
            figures = metric.compute(predictions=answers["prediction"], references=_right_answers(table)["prediction"])
            found |= {f"{metric.name}/{key}": float(value) for key, value in figures.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"training.hub_metrics: {metric.name} cannot score this task: {error}") from error
    return found

"""Write `result.json`, and the record and model card of each saved model."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from nlp_transfer.inference.predictor import PRECISION
from nlp_transfer.models.device import device_type
from nlp_transfer.report.model_card import write_card
from nlp_transfer.run.data_facts import data_facts
from nlp_transfer.run.final_model import save_job
from nlp_transfer.run.final_scores import score_splits
from nlp_transfer.run.folder import RunFolder
from nlp_transfer.run.run import Run
from nlp_transfer.saved_models.layout import DATA_FACTS, REPORT
from nlp_transfer.saved_models.load import RECORD
from nlp_transfer.saved_models.save import add_to_record, is_plain, versions
from nlp_transfer.security.secret_patterns import clean
from nlp_transfer.strategies import Job, nested_tasks
from nlp_transfer.training.position import Position
from nlp_transfer.utils import environment
from nlp_transfer.utils.atomic_files import retry_while_full, write_json
from nlp_transfer.utils.console import say, show_metrics


def make_result(run: Run) -> dict[str, Any]:
    """Return the content of `result.json`."""
    signatures = run.task.scorer.signatures()
    return {
        "task": run.document["task"], "strategy": run.document["strategy"], "model": run.config.model,
        "seed": run.config.training.seed, "plain": is_plain(run.model), "metrics": run.metrics, "metrics_precision": PRECISION,
        "train": run.speed, "versions": versions(),
        **({"strategy_choice": dict(run.choice)} if run.choice else {}),
        **({"calibration": dict(run.calibration)} if run.calibration else {}),
        **({"signatures": signatures} if run.metrics and signatures else {}),
        **({"tasks": run.auxiliary_results} if run.auxiliary_results else {}),
    }  # fmt: skip


def training_metrics(position: Position, parameters: tuple[int, int], preparation: float) -> dict[str, Any]:
    """Return the entry `train` of `result.json`, with duration, speed, parameter counts and memory.

    `seconds` includes preparation and evaluations; `examples_per_second` covers optimizer steps only.

    Args:
        position: the progress at the end of training.
        parameters: number of trainable parameters, and of all parameters.
        preparation: seconds before the first step (loading, caching features).
    """
    return {
        "seconds": round(position.seconds + preparation, 3),
        "preparation_seconds": round(preparation, 3),
        "step_seconds": round(position.step_seconds, 3),
        "steps": position.step,
        "best_step": position.best_step,
        "examples": position.examples,
        "tokens": position.tokens,
        "examples_per_second": round(position.examples / max(position.step_seconds, 1e-9), 3),
        "trainable_parameters": parameters[0],
        "total_parameters": parameters[1],
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int:
    """Return the peak memory in bytes of the GPU if there is one, otherwise of this process."""
    return int(torch.cuda.max_memory_allocated()) if device_type() == "cuda" else environment.peak_memory()


def save_further_tasks(
    jobs: Mapping[str, tuple[Job, Any]], folder: RunFolder, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """Save and score the auxiliary tasks of a strategy, each in `tasks/NAME/model/`.

    Args:
        jobs: the job and the trained model of each task, by task name.

    Returns:
        The entry `tasks` of `result.json`.
    """
    results = {}
    for name, (job, learned) in jobs.items():
        model, model_folder = learned, folder.path / "tasks" / name / "model"
        if accelerator.is_main_process:
            model = retry_while_full(partial(save_job, job, model, model_folder), name, model_folder)
        metrics, _ = score_splits(job, model, accelerator, [], model_folder.parent)
        results[name] = {"task": job.task.document(), "plain": is_plain(model), "metrics": metrics}
        if metrics and (signatures := job.task.scorer.signatures()):
            results[name]["signatures"] = signatures
        show_metrics({f"{name}: {split}": values for split, values in metrics.items()})
    return results


def finish_run(run: Run, folder: RunFolder, with_plots: bool = True) -> None:
    """Write model cards, records and finally `result.json`, which marks the run as finished; delete the checkpoints."""
    write_json(folder.path / DATA_FACTS, clean(data_facts(run)))
    plots = _card_plots(run, folder) if with_plots else []
    saved = [(folder.path / name, run.task, run.result, run.config.data, run.splits.rows) for name in ("model", "adapter")]
    for (name, (job, _)), (data, _) in zip(run.auxiliary.items(), nested_tasks(run.strategy).values(), strict=True):
        task_result = {"signatures": {}, **run.result, **run.result["tasks"][name]}
        saved.append((folder.path / "tasks" / name / "model", job.task, task_result, data, job.rows))
    for model_folder, task, result, data, rows in saved:
        if (model_folder / RECORD).is_file():
            add_to_record(model_folder, {key: result[key] for key in ("metrics", "calibration") if key in result})
            sources = {split: clean(getattr(data, split)) for split in ("train", "validation", "test")}
            counts = {"rows": {split: len(split_rows) for split, split_rows in rows.items()}}
            card = partial(
                write_card,
                model_folder,
                task,
                clean(result),
                {**sources, **counts},
                run.document["training"],
                plots if model_folder.name == "model" and task is run.task else (),
            )
            retry_while_full(card, "the model card", model_folder)
    write_json(folder.path / "result.json", run.result)
    folder.clear_checkpoints()


def show_report(folder: Path) -> None:
    """Write `report.html` of a finished run, and print its short form. A problem is printed, since the run is finished."""
    try:
        from nlp_transfer.report.run_records import RunRecords
        from nlp_transfer.report.run_report import write_report
        from nlp_transfer.report.short_form import show_errors

        records = RunRecords.read(folder)
        show_errors(records)
        write_report(folder / REPORT, [records])
        say(f"the report is {folder / REPORT}")
    except Exception as error:  # such as predictions of a user-defined task in an unexpected form
        say(f"warning: {folder / REPORT} was not written ({type(error).__name__}: {error})")


def _card_plots(run: Run, folder: RunFolder) -> list[tuple[str, str, str]]:
    """Write the plots of the model card, see `write_card_plots`. A problem is printed."""
    try:
        from nlp_transfer.report.card_plots import write_card_plots
        from nlp_transfer.report.run_records import RunRecords

        return write_card_plots(folder.path / "model", RunRecords.read(folder.path, run.result))
    except Exception as error:
        say(f"warning: the model card has no plots ({type(error).__name__}: {error})")
        return []

"""The model card of a saved model: its use, training data, metrics, settings and limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from markupsafe import Markup

from nlp_transfer.data.sources import HUB_MODEL
from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.evaluation.metrics import KNOWN_KEYS
from nlp_transfer.report.language_codes import language_code
from nlp_transfer.report.rendering import code_span, one_line, render_markdown
from nlp_transfer.saved_models.custom_models import FOLDER as CUSTOM_FOLDER
from nlp_transfer.saved_models.load import read_record
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import number
from nlp_transfer.utils.environment import expand

METADATA_METRICS = (  # metrics listed in the YAML metadata
    "accuracy", "f1", "precision", "recall", "f1_macro", "f1_micro", "mcc", "auc", "r2", "pearson", "spearman", "mae", "rmse",
    "mse", "bleu", "chrf", "ter", "exact_match",
)  # fmt: skip
SPLIT_OFF = "split off the training data"


def write_card(
    folder: Path,
    task: Task,
    result: Mapping[str, Any],
    data: Mapping[str, Any],
    training: Mapping[str, Any],
    plots: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Write the model card, `README.md`, to the folder of a model or an adapter.

    Args:
        result: content of the run's `result.json`.
        data: the sources of `train`, `validation` and `test`, and the number of rows of each split as `rows`.
        training: the resolved training settings.
        plots: description and file name of each plot in the folder, and the meaning of numbers that replace labels in it.
    """
    scored = "test" if result["metrics"].get("test") else "validation"
    metrics = result["metrics"].get(scored, {})
    is_adapter, is_custom = (folder / "adapter_config.json").is_file(), (folder / CUSTOM_FOLDER).is_dir()
    base, title = str(result["model"]), _title(str(result["model"]))
    sources = {split: data.get(split) for split in ("train", "validation", "test") if split in data["rows"]}
    rows, has_intervals = _metric_rows(metrics)
    card = render_markdown(
        task.traits.card or "model_card.md",
        head=Markup(_metadata(task, result, is_adapter, title, sources, scored).to_yaml()),
        title=title, task=task, task_name=task_name(task), base=data_name(base), strategy=strategy_label(result["strategy"]),
        choice=(result.get("strategy_choice") or {}).get("reason"),
        is_adapter=is_adapter, is_custom=is_custom, is_plain=result["plain"], labels=list(task.scorer.labels),
        merges=(read_record(folder) or {}).get("merges", True),
        splits=[
            (split, SPLIT_OFF if source is None else code_span(data_name(source)), f"{data['rows'][split]:,}")
            for split, source in sources.items()
        ],
        has_test="test" in sources, scored=scored, metrics=rows, intervals=has_intervals,
        signatures=[(name, text) for name, text in result.get("signatures", {}).items() if name in metrics],
        precision=result.get("metrics_precision"), plots=plots,
        settings=[
            (name, f"{value:.4g}" if isinstance(value, float) else str(value))
            for name, value in training.items()
            if value not in (None, [], {}, "auto")
        ],
        seed=result["seed"], versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    )  # fmt: skip
    write_bytes(folder / "README.md", str(ModelCard(card)).encode())


def _metadata(
    task: Task, result: Mapping[str, Any], is_adapter: bool, title: str, sources: Mapping[str, Any], scored: str
) -> ModelCardData:
    """Return the YAML metadata at the start of the card, which the Hub reads."""
    pipeline, settings = task.traits.pipeline, task.document()
    languages = [settings.get(name) for name in ("source_language", "target_language")]
    codes = list(dict.fromkeys(code for language in languages if language and (code := language_code(str(language)))))
    unknown = set(task.traits.metrics) - set(KNOWN_KEYS)  # the task's own metrics
    # A split without a source comes from the training data.
    source = sources["train"] if sources.get(scored) is None and "train" in sources else sources.get(scored)
    results = [
        EvalResult(
            task_type=pipeline, dataset_type="local", dataset_name=one_line(data_name(source)), dataset_split=scored,
            metric_type=name, metric_value=round(value, 6), metric_name=name,
        )
        for name, value in result["metrics"].get(scored, {}).items() if name in METADATA_METRICS or name in unknown
    ]  # fmt: skip
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers", pipeline_tag=pipeline, language=codes or None,
        tags=["nlp_transfer", task_name(task), one_line(strategy_label(result["strategy"]))],
        base_model=_hub_id(str(result["model"])), model_name=one_line(title), eval_results=results or None,
    )  # fmt: skip


def data_name(source: Any) -> str:
    """Return the name of a data source for the card: hub ids and wheels in full, local files without their folders."""
    if source is None:
        return SPLIT_OFF
    if isinstance(source, Mapping):
        return " and ".join(data_name(file) for file in source.values())
    if not isinstance(source, str):
        return f"a {type(source).__name__} in memory"
    return source if is_wheel(source) or not Path(source).exists() else Path(source).name


def strategy_label(strategy: Any) -> str:
    """Return the names of a strategy or list of strategies, joined by +."""
    return " + ".join(str(part["name"]) for part in (strategy if isinstance(strategy, list) else [strategy]))


def _hub_id(base: str) -> str | None:
    """Return a model's id on the Hub without its revision, or None for a local model."""
    match = HUB_MODEL.match(base)
    return match["id"] if match and not expand(base).exists() else None


def _title(base: str) -> str:
    return f"{base if _hub_id(base) else Path(base.partition('#')[2] or base).name}, fine-tuned"


def _metric_rows(metrics: Mapping[str, float]) -> tuple[list[tuple[str, str, str]], bool]:
    """Return the name, value and 95 % interval of each metric as text, and whether any metric has an interval."""
    intervals = {name: (f"{name}_low", f"{name}_high") for name in metrics if f"{name}_low" in metrics}
    bounds = {end for pair in intervals.values() for end in pair}
    rows = [
        (name, f"{value:.2f}", " to ".join(f"{metrics[end]:.2f}" for end in intervals[name]))
        if name in intervals
        else (name, number(value), "")
        for name, value in metrics.items()
        if name not in bounds
    ]
    return rows, bool(intervals)

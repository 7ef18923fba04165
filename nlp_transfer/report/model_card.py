"""The model card: what the model is, how to use it, what it was trained on and how well it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nlp_transfer.data.sources import HUB_MODEL
from nlp_transfer.data.sources.wheels import is_wheel
from nlp_transfer.report.card_usage import ADAPTER, UNMERGED, task_part
from nlp_transfer.report.markdown import code, one_line, plain_text, row
from nlp_transfer.saved_models.custom_models import FOLDER as BUILT
from nlp_transfer.saved_models.load import read_record
from nlp_transfer.tasks import Task, task_name
from nlp_transfer.utils.atomic_files import write_bytes
from nlp_transfer.utils.console import number
from nlp_transfer.utils.environment import expand

SHOWN = (
    "accuracy", "f1_macro", "f1_micro", "mcc", "auc", "r2", "pearson", "spearman", "mae", "rmse", "mse", "bleu", "chrf", "ter",
)  # fmt: skip


def data_name(source: Any) -> str:
    """How a card names a source: hub ids and wheels in full, local files without their folders."""
    if source is None:
        return "a part of the training rows"
    if isinstance(source, Mapping):
        return " and ".join(data_name(file) for file in source.values())
    if not isinstance(source, str):
        return f"a {type(source).__name__} in memory"
    return source if is_wheel(source) or not Path(source).exists() else Path(source).name


def write_card(folder: Path, task: Task, result: Mapping[str, Any], data: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Writes `README.md`.

    Args:
        result: the run's `result.json`.
        data: `train`, `validation` and `test` as given, and `rows` by split.
        training: the resolved training settings.
    """
    base = str(result["model"])
    adapter = (folder / "adapter_config.json").is_file()
    merges = (read_record(folder) or {}).get("merges", True)
    note = (ADAPTER if merges else f"{ADAPTER} {UNMERGED}") if adapter else ""
    if (folder / BUILT).is_dir():
        note = f"It is built by {code(task_name(task))}, whose module must be installed, or named with `--code` in commands."
    part = task_part(task, result["plain"], note)
    names = {split: data_name(data.get(split)) for split in ("train", "validation", "test") if split in data["rows"]}
    scored = "test" if result["metrics"].get("test") else "validation"
    figures = result["metrics"].get(scored, {})
    source = names.get("train" if data.get(scored) is None else scored, "none")  # a split that was set aside is a part of train
    title = f"{base if _hub_id(base) else Path(base.partition('#')[2] or base).name}, fine-tuned"
    card = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=part.pipeline_tag,
        language=part.languages or None,
        tags=["nlp_transfer", task_name(task), one_line(strategy_label(result["strategy"]))],
        base_model=_hub_id(base),
        model_name=one_line(title),
        eval_results=[
            EvalResult(
                task_type=part.pipeline_tag, dataset_type="local", dataset_name=one_line(source), dataset_split=scored,
                metric_type=name, metric_value=round(value, 6), metric_name=name,
            )
            for name, value in figures.items() if name in SHOWN
        ] or None,
    )  # fmt: skip
    labels = getattr(task, "labels", None)
    lines = [
        f"# {plain_text(title)}",
        "",
        f"A {task_name(task).replace('_', ' ')} model made from {code(data_name(base))}.",
        f"Strategy: {code(strategy_label(result['strategy']))}.",
        "",
        "## Use",
        "",
        *part.usage,
        "## Data",
        "",
        *(
            f"- {split}: {name if data.get(split) is None else code(name)}, {data['rows'][split]:,} rows"
            for split, name in names.items()
        ),
        *([] if "test" in names else ["- no test split was given"]),
        *([f"- labels: {', '.join(map(code, labels))}"] if labels else []),
        "",
        f"## Figures ({scored})" if figures else "## Figures",
        "",
        *_figures(figures, result.get("signatures", {}), part.figures),
        *([f"Computed in {result['metrics_precision']}.", ""] if figures and "metrics_precision" in result else []),
        "## Settings",
        "",
        *(
            f"- {name}: {code(f'{value:.4g}' if isinstance(value, float) else str(value))}"
            for name, value in training.items()
            if value not in (None, [], {}, "auto")
        ),
        *part.settings,
        f"- seed {result['seed']}; {', '.join(f'{name} {number}' for name, number in result['versions'].items())}",
        "",
        "## Limits",
        "",
        part.limits,
        "",
    ]
    text = str(ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n".join(lines)))
    write_bytes(folder / "README.md", text.encode())


def _hub_id(base: str) -> str | None:
    """The base as a card may name it: an id on a hub, without the revision."""
    match = HUB_MODEL.match(base)
    return match["id"] if match and not expand(base).exists() else None


def _figures(figures: Mapping[str, float], signatures: Mapping[str, str], remarks: list[str]) -> list[str]:
    """A table, with 95 % intervals where there are such, and how the figures were computed."""
    if not figures:
        return ["No split was scored.", ""]
    ends = {name: [f"{name}_{end}" for end in ("low", "high")] for name in figures if f"{name}_low" in figures}
    shown = {name: value for name, value in figures.items() if not any(name in pair for pair in ends.values())}
    head = ["metric", "value", *(["95 % interval"] if ends else [])]
    lines = [row(head), "|---" * len(head) + "|"]
    for name, value in shown.items():
        interval = " to ".join(f"{figures[end]:.2f}" for end in ends.get(name, []))
        lines.append(row([name, f"{value:.2f}" if name in ends else number(value), *([interval] if ends else [])]))
    used = [f"- {name}: {code(signature)}" for name, signature in signatures.items() if name in figures]
    return [*lines, "", *(remarks if used else []), *([*used, ""] if used else [])]


def strategy_label(strategy: Any) -> str:
    parts = strategy if isinstance(strategy, list) else [strategy]
    return " + ".join(str(part["name"]) for part in parts)

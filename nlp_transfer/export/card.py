"""The model card: what the model is, how to use it, what it was trained on and how well it does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nlp_transfer.sources import HUB_MODEL
from nlp_transfer.sources.wheels import is_wheel
from nlp_transfer.tasks import Task, task_name

WITHOUT = "Without `import nlp_transfer` transformers refuses the model; `encoder/` is the plain encoder alone."
SHOWN = ("accuracy", "f1_macro", "f1_micro", "mcc", "auc", "pearson", "spearman", "mse")


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
        data: `train` and `test` as given, and `rows` by split.
        training: the resolved training settings.
    """
    base = str(result["model"])
    names = [data_name(data["train"])]
    scored = "test" if result["metrics"].get("test") else "validation"
    figures = {name: value for name, value in result["metrics"].get(scored, {}).items() if name in SHOWN}
    title = f"{Path(base.partition('#')[2] or base).parts[-1] if not HUB_MODEL.match(base) else base}, fine-tuned"
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["nlp_transfer", task_name(task), str(strategy_label(result["strategy"]))],
        base_model=base if HUB_MODEL.match(base) and not Path(base).exists() else None,
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-classification", dataset_type="local", dataset_name=names[0], dataset_split=scored,
                metric_type=name, metric_value=round(value, 6), metric_name=name,
            )
            for name, value in figures.items()
        ] or None,
    )  # fmt: skip
    labels = getattr(task, "labels", None)
    example = '{"text": "some text", "text_pair": "another"}' if getattr(task, "text_pair", None) else '"some text"'
    lines = [
        f"# {plain_text(title)}",
        "",
        f"A {task_name(task).replace('_', ' ')} model made from {code(data_name(base))}.",
        f"Strategy: {strategy_label(result['strategy'])}.",
        "",
        "## Use",
        "",
        "```python",
        *([] if result["plain"] else ["import nlp_transfer  # makes the Auto classes know this head", ""]),
        "from transformers import pipeline",
        "",
        'classify = pipeline("text-classification", "path/or/id")',
        f"print(classify({example}))",
        "```",
        "",
        *([] if result["plain"] else [WITHOUT, ""]),
        "## Data",
        "",
        f"- train: {code(names[0])}, " + ", ".join(f"{count} rows for {split}" for split, count in data["rows"].items()),
        f"- test: {code(data_name(data['test']))}" if "test" in data["rows"] else "- no test split was given",
        *([f"- labels: {', '.join(map(code, labels))}"] if labels else []),
        "",
        f"## Figures ({scored})",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {value:.4f} |" for name, value in result["metrics"].get(scored, {}).items()),
        "",
        "## Settings",
        "",
        *(f"- {name}: {code(str(value))}" for name, value in training.items() if value not in (None, [], {})),
        f"- longest input: {task.max_length} tokens",
        f"- seed {result['seed']}; {', '.join(f'{name} {number}' for name, number in result['versions'].items())}",
        "",
        "## Limits",
        "",
        "The figures hold for text like that of the data above. Longer inputs are cut at the length given. Nothing was measured "
        "about other languages, other domains or fairness between groups.",
        "",
    ]  # fmt: skip
    ModelCard(f"---\n{card.to_yaml()}\n---\n\n" + "\n".join(lines)).save(folder / "README.md")


def strategy_label(strategy: Any) -> str:
    parts = strategy if isinstance(strategy, list) else [strategy]
    return " + ".join(str(part["name"]) for part in parts)


def plain_text(text: str) -> str:
    """A user's words in Markdown: what would be markup is shown as it stands."""
    return "".join(f"\\{mark}" if mark in "\\`*_{}[]<>#|!" else mark for mark in " ".join(text.split()))


def code(text: str) -> str:
    """A user's words as code; a back-tick in them would end it."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"

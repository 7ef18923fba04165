"""Token classification: find entities in texts, such as the names of people and places."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.oversampling import rarest_labels
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import WINDOWS, Features, TokenTable, as_objects, model_inputs, token_padding
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.preparation import dropout_overrides
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED
from nlp_transfer.settings.applicability import Not, UsedBy, UsedWith
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, Batch, Description, Items, Task, TaskTraits
from nlp_transfer.tasks.common.input_columns import check_distinct
from nlp_transfer.tasks.common.labels import (
    LabelList,
    balance,
    check_no_classes,
    check_occurrence,
    configured_labels,
    sort_labels,
)
from nlp_transfer.tasks.common.objectives import TokenCrossEntropy, smoothing_of
from nlp_transfer.tasks.common.pretrained_head import match_head
from nlp_transfer.tasks.common.task import check_has_rows, check_knows_characters, token_limit
from nlp_transfer.tasks.token_classification.entities import (
    INSTEAD,
    OUTSIDE,
    SCHEMES,
    TAG_FORM,
    Span,
    find_entities,
    input_fault,
    read_conll,
    settings_of_model,
    span_fault,
    spans_in_words,
    spans_of,
    split_tag,
    split_words,
    tags_of,
    text_and_words,
    type_names,
    words_of,
    write_tags,
)
from nlp_transfer.tasks.token_classification.entity_scorer import ENTITY_KEYS, EntityScorer
from nlp_transfer.tasks.token_classification.word_tokens import align_words
from nlp_transfer.utils.errors import Problems, UserError, did_you_mean

HEAD = "TokenClassification"
UNREADABLE = "with tags or spans that cannot be read"  # kind of bad rows


class TokenClassification(Task):
    """Named entity recognition: predict the entities of a sentence from a tag for each word.

    Only the first token of a word is classified. Long texts are processed in overlapping windows.
    """

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="entities", metrics=ENTITY_KEYS, best_metric="f1", auto_class="AutoModelForTokenClassification",
        architecture=HEAD, pipeline="token-classification", card=Path(__file__).with_name("entity_card.md"),
        fixed=("labels", "scheme"), word_lists=True, configured=settings_of_model,
        readers=dict.fromkeys((".conll", ".bio", ".iob", ".iob2"), read_conll),
    )  # fmt: skip

    text: Annotated[str | None, UsedBy("evaluate", "predict")] = None
    """The column with a text. null: rows are lists of words, in the column `tokens`."""
    spans: Annotated[str, UsedWith(text=Not(None)), UsedBy("evaluate")] = "spans"
    """The column with the entities of a text: a list of objects with `start` and `end` (in characters) and `label`."""
    tokens: Annotated[str, UsedWith(text=None), UsedBy("evaluate", "predict")] = "tokens"
    """The column with a list of words, or with words separated by spaces."""
    tags: Annotated[str, UsedWith(text=None), UsedBy("evaluate")] = "tags"
    """The column with the tag of each word: `O`, or `B-`, `I-`, `E-` or `S-` followed by a type; or integers."""
    tag_names: Annotated[list[str] | None, UsedWith(text=None), UsedBy("evaluate")] = None
    """Names of integer tags, in the order of the integers."""
    labels: LabelList | None = None
    """The types of entities. null: the types in the training data, alphabetically."""
    scheme: Literal["IOB2", "BIOES"] = "IOB2"
    """Tags that the model predicts. IOB2: first and other words of an entity. BIOES: also its last and its only word. Tags in
    the data may have either form."""
    stride: Annotated[Annotated[int, Field(ge=0)] | None, UsedBy("evaluate", "predict")] = None
    """Tokens that two windows of a long text have in common. null: a quarter of `max_length`."""

    _outputs: tuple[str, ...] | None = PrivateAttr(None)  # tags in the order of the outputs of a saved model

    @property
    def inputs(self) -> list[str]:
        return [self.tokens if self.text is None else self.text]

    @property
    def targets(self) -> list[str]:
        return [self.tags if self.text is None else self.spans]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tags in the order of the model's outputs."""
        prefixes = SCHEMES[self.scheme]
        return self._outputs or (OUTSIDE, *(f"{prefix}-{label}" for label in self.labels or [] for prefix in prefixes))

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        names = ("tokens", "tags") if self.text is None else ("text", "spans")
        check_distinct([(name, getattr(self, name)) for name in names], problems)
        for name in self.tag_names or []:
            if split_tag(name) is None:
                problems.add(f"task.tag_names: found {name!r}; allowed: {TAG_FORM}")
        if training is not None:
            reason = "a changed text no longer matches its tags"
            check_no_classes(training, "a row of token_classification", problems, has_labels=True, not_augmented=reason)
        check_has_rows(train, problems)
        if train is None or not len(train):
            return self
        counts = Counter(label for spans in self._known_spans(train) for label, _, _ in spans)
        labels = self.labels or sort_labels(counts)
        if not labels:
            problems.add(f"train, column {self.targets[0]!r}: no row has an entity; allowed: rows with entities")
        elif not problems:
            check_occurrence(labels, counts, train, problems)
        return self.model_copy(update={"labels": labels or None})

    def _known_spans(self, rows: Rows) -> Iterator[list[Span]]:
        """Yield the entities of each row, in words or characters; none for unreadable rows."""
        for cell in rows.columns[self.targets[0]]:
            try:
                yield self._spans(cell)
            except ValueError:
                yield []

    def _spans(self, cell: Any) -> list[Span]:
        """Return the entities in a cell of the target column, in words or characters.

        Raises:
            ValueError: If the cell cannot be read; the message says what was found and what is allowed.
        """
        return find_entities(tags_of(cell, self.tag_names)) if self.text is None else spans_of(cell)

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        column = rows.columns[self.inputs[0]]
        for row, cell in enumerate(column):
            if (fault := input_fault(cell, self.text is not None)) is not None:
                problems.add_row(row, rows.bad(row, self.inputs[0], *fault))
            elif targets and (reason := self._target_fault(cell, rows.columns[self.targets[0]][row])) is not None:
                problems.add_row(row, rows.bad(row, self.targets[0], reason, UNREADABLE))

    def _target_fault(self, cell: Any, target: Any) -> str | None:
        """Return why the entities of a row are unusable."""
        try:
            spans = self._spans(target)
        except ValueError as error:
            return str(error)
        if self.text is None:
            words, tags = len(words_of(cell) or []), len(words_of(target) or [])
            if words != tags:
                return f"found {tags} tags for {words} words; allowed: one tag for each word"
        elif fault := span_fault(spans, len(cell)):
            return fault
        if self.labels and (unknown := [label for label, _, _ in spans if label not in self.labels]):
            known = ", ".join(self.labels)
            return f"found the type {unknown[0]!r}{did_you_mean(unknown[0], self.labels)}; allowed: {known} (task.labels)"
        return None

    def describe(self, train: Rows) -> Description:
        """Describe training rows. Their stratum is the rarest entity type."""
        labels = self.labels or []
        hot, counts, inside = np.zeros((len(train), len(labels))), Counter[str](), 0
        for row, spans in enumerate(self._known_spans(train)):
            counts.update(label for label, _, _ in spans)
            hot[row, [labels.index(label) for label in {label for label, _, _ in spans}]] = 1
            if self.text is not None:
                starts, ends = zip(*split_words(train.columns[self.text][row]), strict=True)
                inside += sum(start not in starts or end not in ends for _, start, end in spans)
        lines = [
            f"{counts.total():,} entities in {int(hot.any(1).sum()):,} of {len(train):,} rows",
            *balance(counts, counts.total()),
        ]
        if inside:
            lines.append(
                f"warning: {inside:,} of {counts.total():,} entities begin or end inside a word; the model learns to predict the "
                "complete words, which count as errors"
            )
        return Description(rarest_labels(hot), lines)

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        task = super().prepare(checkpoint, train, parts)
        check_knows_characters(checkpoint)
        limit = token_limit(task)
        most = limit - checkpoint.tokenizer.num_special_tokens_to_add() - 1
        if self.stride is not None and self.stride > most:
            raise UserError(f"task.stride: found {self.stride}; allowed: 0 to {most}, with task.max_length {limit}")
        if train is None and parts is None and checkpoint.head == HEAD:
            task._outputs = tuple(map(str, configured_labels(checkpoint.config)))
        return task

    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        padding = token_padding(tokenizer) | {"target_word": -1, WINDOWS: 0}
        if targets:
            padding["labels"] = IGNORED
        cells = columns[self.inputs[0]]
        texts, words = zip(*(text_and_words(cell, self.text is not None) for cell in cells), strict=True) if cells else ((), ())
        limit = token_limit(self)
        most = max(0, limit - tokenizer.num_special_tokens_to_add() - 1)
        stride = min(limit // 4 if self.stride is None else self.stride, most)
        aligned = align_words(tokenizer, texts, words, limit, stride, padding, merge=self.text is not None)
        ragged = dict(aligned.columns)
        rows = list(zip(texts, aligned.units, strict=True))
        objects: dict[str, list[Any]] = {"inputs": list(map(json.dumps, rows))}
        if targets:
            spans = [self._spans(cell) for cell in columns[self.targets[0]]]
            ragged["labels"] = aligned.labels(
                [self._tag_ids(row, units) for row, units in zip(spans, aligned.units, strict=True)]
            )
            objects["references"] = [
                [self._entity(*span, *row) for span in row_spans] for row, row_spans in zip(rows, spans, strict=True)
            ]
        return Features(ragged, padding, texts={name: as_objects(values) for name, values in objects.items()})

    def _tag_ids(self, spans: list[Span], units: Sequence[tuple[int, int]]) -> list[int]:
        """Return the output of the model for each word, for entities in words or characters."""
        spans = spans if self.text is None else spans_in_words(spans, units)
        index = {tag: i for i, tag in enumerate(self.outputs)}
        return [
            index[OUTSIDE]
            if prefix == OUTSIDE
            else next(index[f"{p}-{label}"] for p in INSTEAD[prefix] if f"{p}-{label}" in index)
            for prefix, label in write_tags(spans, len(units), self.scheme)
        ]

    def _entity(self, label: str, start: int, end: int, text: str, units: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Return an entity in words or characters as a user sees it."""
        first, last = (units[start][0], units[end - 1][1]) if self.text is None else (start, end)
        return {"label": label, "start": start, "end": end, "text": text[first:last]}

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        dropout = dropout_overrides(checkpoint.config, training.dropout, training.attention_dropout)
        if checkpoint.config.is_encoder_decoder:
            raise UserError(
                f"model: {checkpoint.source.name} is a {checkpoint.config.model_type} model with a decoder; token_classification "
                "allows: BERT-family encoders"
            )
        tags = dict(enumerate(self.outputs))
        fields = {"id2label": tags, "label2id": {tag: i for i, tag in tags.items()}, "problem_type": None}
        return match_head(checkpoint.load(AutoModelForTokenClassification, **dropout, **fields), checkpoint, HEAD)

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> TokenCrossEntropy:
        return TokenCrossEntropy(0.0 if training is None else smoothing_of(training))

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Predict the entities of each row from the tags of its words.

        Returns:
            `prediction`: lists of entities, objects of shape (rows,). `scores`: mean probability of the tags of a row, float32
            of shape (rows,). With targets also `right` and `of`, the number of words with the right tag and of all words,
            int64 of shape (rows,); words without a token do not count.
        """
        assert texts is not None, "entities are cut from the texts"
        outputs = model(**model_inputs(batch))
        probabilities, tags = outputs.logits.float().softmax(-1).max(-1)
        at_words = torch.nonzero(batch["target_word"] >= 0, as_tuple=True)
        columns = batch["target_word"], tags, probabilities, batch.get("labels", tags)
        word, tag, probability, label = (values[at_words].cpu().numpy() for values in columns)
        row = batch["target_row"][at_words[0]].cpu().numpy()
        order = np.argsort(row, kind="stable")
        count = np.bincount(row, minlength=len(texts["inputs"]))
        ends = np.cumsum(count)
        entities = [
            self._predicted(*json.loads(text), *(array[order[end - length : end]] for array in (word, tag, probability)))
            for text, end, length in zip(texts["inputs"], ends, count, strict=True)
        ]
        scores = np.bincount(row, probability, minlength=len(count)) / np.maximum(count, 1)
        predictions = {"prediction": as_objects(entities), "scores": scores.astype(np.float32)}
        if "labels" not in batch:
            return predictions, {}
        predictions |= {"right": np.bincount(row, tag == label, minlength=len(count)).astype(np.int64), "of": count}
        return predictions, self.objective().items(outputs, batch)

    def _predicted(self, text: str, units: list[list[int]], words: np.ndarray, tags: np.ndarray, scores: np.ndarray) -> list[Any]:
        """Return the entities of a row, given the tags of those of its words that have a token, and their probabilities."""
        by_word = [(OUTSIDE, "")] * len(units)
        probability = np.ones(len(units))
        probability[words] = scores
        names = [split_tag(name) or (OUTSIDE, "") for name in self.outputs]
        for word, tag in zip(words.tolist(), tags.tolist(), strict=True):
            by_word[word] = names[tag]
        return [
            self._entity(label, *((start, end) if self.text is None else (units[start][0], units[end - 1][1])), text, units)
            | {"score": round(float(probability[start:end].mean()), 6)}
            for label, start, end in find_entities(by_word)
        ]

    @property
    def scorer(self) -> EntityScorer:
        return EntityScorer(self.traits.best_metric, self.outputs, tuple(self.labels or type_names(self.outputs)))

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        return self.scorer.reference_column(references) | {"prediction": self.scorer.typed(predictions["prediction"])}

"""Question answering: find the answer to a question in a context, as a span of characters."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.tokens import WINDOWS, Features, TokenTable, as_objects, model_inputs, token_padding
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.preparation import dropout_overrides
from nlp_transfer.settings.applicability import UsedBy
from nlp_transfer.settings.base_settings import Count
from nlp_transfer.settings.schema import TrainingConfig
from nlp_transfer.tasks import Arrays, Batch, Description, Items, Task, TaskTraits
from nlp_transfer.tasks.common.input_columns import check_distinct, check_texts
from nlp_transfer.tasks.common.labels import check_no_classes
from nlp_transfer.tasks.common.task import check_has_rows, check_knows_characters, token_limit
from nlp_transfer.tasks.question_answering.answer_spans import OUTSIDE, SpanCrossEntropy, best_spans
from nlp_transfer.tasks.question_answering.question_windows import (
    label_windows,
    question_limit,
    split_contexts,
    truncate_questions,
)
from nlp_transfer.tasks.question_answering.squad_format import ALLOWED, Answer, misplaced, parse_answers, read_squad
from nlp_transfer.tasks.question_answering.squad_metrics import ANSWER_KEYS, AnswerScorer
from nlp_transfer.utils.console import say
from nlp_transfer.utils.errors import Problems, UserError, converted

BAD_ANSWER = "with a bad answer"


class QuestionAnswering(Task):
    """Extractive question answering: the model scores each token of a context as the first and the last one of the answer.

    Contexts that are longer than `max_length` are read in overlapping windows.
    """

    traits: ClassVar[TaskTraits] = TaskTraits(
        prediction="span", metrics=ANSWER_KEYS, best_metric="f1",
        untokenized=frozenset({"max_answer_length", "no_answer_threshold"}),
        auto_class="AutoModelForQuestionAnswering", architecture="QuestionAnswering", pipeline="question-answering",
        configured=lambda config: {},
        card=Path(__file__).with_name("question_answering_card.md"), readers={".json": read_squad},
    )  # fmt: skip

    max_length: Annotated[Count | None, UsedBy("evaluate", "predict")] = None
    """Maximum length of question and context in tokens; longer contexts are read in windows. null: 512, or the limit of the
    checkpoint if that is lower."""
    question: Annotated[str, UsedBy("evaluate", "predict")] = "question"
    """The column with the question."""
    context: Annotated[str, UsedBy("evaluate", "predict")] = "context"
    """The column with the text that contains the answer."""
    answers: Annotated[str, UsedBy("evaluate")] = "answers"
    """The column with the answers: {"text": [...], "answer_start": [...]}, as in SQuAD. With `answer_start`, the column with the
    text of the answer."""
    answer_start: Annotated[str | None, UsedBy("evaluate")] = None
    """The column with the position of the answer in the context, in characters. null: `answers` contains the positions."""
    stride: Annotated[Annotated[int, Field(ge=0)] | None, UsedBy("evaluate", "predict")] = None
    """Number of tokens that consecutive windows of a context share. null: a third of `max_length`."""
    max_answer_length: Annotated[Count, UsedBy("evaluate", "predict")] = 30
    """Maximum length of a predicted answer in tokens."""
    no_answer_threshold: Annotated[float | None, UsedBy("evaluate", "predict")] = None
    """No answer is predicted if its score exceeds that of the best span by more than this. null: 0 if the training data have
    questions without an answer; otherwise every question gets one."""

    @property
    def inputs(self) -> list[str]:
        return [self.question, self.context]

    @property
    def targets(self) -> list[str]:
        return [self.answers] if self.answer_start is None else [self.answers, self.answer_start]

    def fit(self, train: Rows | None, problems: Problems, training: TrainingConfig | None = None) -> Self:
        check_distinct([(name, getattr(self, name)) for name in ("question", "context", "answers", "answer_start")], problems)
        if training is not None:
            reason = "a changed context no longer has the answer at its position"
            check_no_classes(training, "question answering", problems, not_augmented=reason)
        check_has_rows(train, problems)
        if train is None or self.no_answer_threshold is not None:
            return self
        unanswerable = any(answers == [] for answers in self._all_answers(train.columns, strict=False))
        return self.model_copy(update={"no_answer_threshold": 0.0 if unanswerable else None})

    def _all_answers(self, columns: Mapping[str, Sequence[Any]], strict: bool = True) -> Iterator[list[Answer] | None]:
        """Yield the answers of each row. Unless `strict`, None for a row whose answers cannot be read."""
        cells = columns[self.answers]
        starts = [None] * len(cells) if self.answer_start is None else columns[self.answer_start]
        for cell, start in zip(cells, starts, strict=True):
            try:
                yield parse_answers(cell, start, self.answer_start is not None)
            except ValueError:
                if strict:
                    raise
                yield None

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        check_texts(rows, self.inputs, problems)
        if not targets:
            return
        allowed = ALLOWED if self.answer_start is None else "a text with its position in characters, or nothing in both columns"
        starts = None if self.answer_start is None else rows.columns[self.answer_start]
        for row, cell in enumerate(rows.columns[self.answers]):
            try:
                answers = parse_answers(cell, starts[row] if starts else None, starts is not None)
            except ValueError as error:
                problems.add_row(row, rows.bad(row, self.answers, f"{error}; allowed: {allowed}", BAD_ANSWER))
                continue
            context = rows.columns[self.context][row]
            faults = [fault for answer in answers if isinstance(context, str) and (fault := misplaced(answer, context))]
            if faults:
                problems.add_row(row, rows.bad(row, self.answers, faults[0], BAD_ANSWER))

    def describe(self, train: Rows) -> Description:
        """Describe training rows. Strata are questions with and without an answer."""
        has_answer = np.array([bool(answers) for answers in self._all_answers(train.columns)], bool)
        contexts = len(set(train.columns[self.context]))
        without = int((~has_answer).sum())
        lines = [f"{len(train):,} questions on {contexts:,} contexts, {without or 'none'} without an answer"]
        return Description(has_answer.astype(np.int64), lines)

    def prepare(self, checkpoint: Checkpoint, train: Rows | None = None, parts: ModelSource | None = None) -> Self:
        task = super().prepare(checkpoint, train, parts)
        tokenizer, limit = checkpoint.tokenizer, token_limit(task)
        check_knows_characters(checkpoint)
        most = question_limit(tokenizer, limit) - 1
        if not 0 <= (stride := min(limit // 3, most) if self.stride is None else self.stride) <= most:
            raise UserError(
                f"task.stride: found {self.stride} with task.max_length {limit}, of which half is for the question; allowed: "
                f"0 to {most}"
            )
        task = task.model_copy(update={"stride": stride})
        if train is not None:
            task._warn_of_long_answers(train, tokenizer)
        return task

    def _warn_of_long_answers(self, train: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
        texts = [answers[0].text for answers in self._all_answers(train.columns) if answers]
        if not texts:
            return
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        if long := sum(length > self.max_answer_length for length in lengths):
            say(
                f"warning: {long} of {len(lengths)} answers in train have more than task.max_answer_length "
                f"({self.max_answer_length}) tokens, up to {max(lengths)}; predictions are shorter"
            )

    def encode(self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True) -> Features:
        padding = token_padding(tokenizer) | {"target_start": OUTSIDE, "target_end": OUTSIDE} | ({"labels": 0} if targets else {})
        ragged: dict[str, list[list[int]]] = {name: [] for name in (*padding, WINDOWS)}
        contexts, limit = columns[self.context], token_limit(self)
        answers = list(self._all_answers(columns)) if targets else []
        truncated = 0
        with converted(f"model: the tokenizer {tokenizer.name_or_path} cannot encode the rows"):
            questions, long = truncate_questions(tokenizer, columns[self.question], limit)
            all_windows = split_contexts(tokenizer, questions, contexts, limit, self.stride or 0)
        for row, windows in enumerate(all_windows):
            joined = {name: np.concatenate([window[name] for window in windows]) for name in windows[0]}
            joined[WINDOWS] = np.array([len(window["input_ids"]) for window in windows])
            if targets:
                labels, is_inside = label_windows(windows, answers[row] or [])
                joined["labels"] = labels
                truncated += long[row] or not is_inside
            else:
                truncated += long[row]
            for name in ragged:
                ragged[name].append(joined[name].tolist())
        texts = {"questions": as_objects(columns[self.question]), "contexts": as_objects(contexts)}
        if targets:
            texts["answers"] = as_objects([[answer.text for answer in row or []] for row in answers])
        return Features(ragged, padding, texts=texts, truncated=truncated)

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        dropout = dropout_overrides(checkpoint.config, training.dropout, training.attention_dropout)
        model: Any = checkpoint.load(AutoModelForQuestionAnswering, **dropout, num_labels=2)
        if checkpoint.head == self.traits.architecture:
            model.head_note = "head: kept from the checkpoint, which was trained for question answering"
        built: PreTrainedModel = model
        return built

    def objective(self, training: TrainingConfig | None = None, train: TokenTable | None = None) -> SpanCrossEntropy:
        return SpanCrossEntropy()

    def predict(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """Find the best span of each row in its `contexts`.

        Returns:
            `prediction`: texts, objects of shape (rows,), empty for no answer. `probability`: of the prediction, float32.
            `start` and `end`: characters of the context, int64; -1 for no answer.
        """
        outputs = model(**model_inputs(batch))
        items = self.objective().items(outputs, batch) if "labels" in batch else {}
        starts, ends, row = (batch[name].cpu().numpy() for name in ("target_start", "target_end", "target_row"))
        start_logits, end_logits = (
            tensor.float().cpu().numpy()[:, -starts.shape[1] :] for tensor in (outputs.start_logits, outputs.end_logits)
        )
        spans = best_spans(start_logits, end_logits, starts, ends, row, self.max_answer_length)
        threshold = np.inf if self.no_answer_threshold is None else self.no_answer_threshold
        is_empty = (spans.margin > threshold) | (spans.end == 0)
        start, end = np.where(is_empty, -1, spans.start), np.where(is_empty, -1, spans.end)
        assert texts is not None, "a table of this task has the contexts as texts"
        prediction = as_objects([context[i:j] for context, i, j in zip(texts["contexts"], start, end, strict=True)])
        probability = np.where(is_empty, spans.no_answer, spans.probability)
        return {"prediction": prediction, "probability": probability, "start": start, "end": end}, items

    @property
    def scorer(self) -> AnswerScorer:
        return AnswerScorer(self.traits.best_metric)

    def columns(
        self, predictions: Arrays, references: np.ndarray | None = None, probabilities: bool = False, cells: bool = False
    ) -> dict[str, list[Any]]:
        names = ("prediction", "probability", "start", "end")
        return self.scorer.reference_column(references) | {name: predictions[name].tolist() for name in names}

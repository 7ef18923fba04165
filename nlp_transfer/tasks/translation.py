"""A text in one language to the same text in another."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from nlp_transfer.data.parallel_texts import FILTERS, check_pairs, describe_pairs, draw_rows, filter_pairs
from nlp_transfer.data.sources import ModelSource
from nlp_transfer.data.sources.rows import Rows
from nlp_transfer.data.token_cache import tokenizer_fingerprint
from nlp_transfer.data.tokens import model_inputs
from nlp_transfer.evaluation.metrics import compute_translation_metrics, translation_signatures, translation_statistics
from nlp_transfer.models.checkpoint import Checkpoint
from nlp_transfer.models.seq2seq.encoder_decoder import (
    build_encoder_decoder,
    build_whole,
    choose_target,
    decoder_limit,
    set_special_tokens,
)
from nlp_transfer.models.seq2seq.generation import ROWS, set_search, translate
from nlp_transfer.models.seq2seq.target_tokenizers import LEAST
from nlp_transfer.models.seq2seq.tokenizer_pair import IGNORED, TARGET_FOLDER, Sides, own_target
from nlp_transfer.settings.applicability import Not, UsedWith
from nlp_transfer.settings.schema import Count, Name, TrainingConfig
from nlp_transfer.tasks import PLAIN_LOSS, Arrays, Batch, Items, LossOptions, Task
from nlp_transfer.tasks.common.labels import check_no_classes
from nlp_transfer.utils.atomic_files import replacing_folder
from nlp_transfer.utils.errors import BadRow, Problems, UserError

MADE_HERE = "encoder-decoder"  # the family of models made from an encoder and a decoder
HEAD_START = 8  # tokens added to a source's length before the ratio: short texts vary more
SAMPLE = 2000  # pairs from which lengths are measured
SHOWN = 3


class Translation(Task):
    """Learned from pairs of texts; answers are texts."""

    best_metric: ClassVar[str] = "token_accuracy"
    aligned: ClassVar[bool] = True
    filters: ClassVar[tuple[str, ...]] = tuple(FILTERS)
    prediction_kind: ClassVar[Literal["label", "labels", "number", "text"]] = "text"
    while_training: ClassVar[tuple[str, ...]] = ("translated_rows",)

    max_length: Count | None = None
    """Longest source, and longest target, in tokens; null: 512, or the checkpoint's limit where that is smaller."""
    source: str = "source"
    """The column with the text to be translated."""
    target: str = "target"
    """The column with its translation."""
    source_language: str | None = None
    """The code of the source's language, in the words of a multilingual checkpoint (`en_XX`, `eng_Latn`)."""
    target_language: str | None = None
    """The code of the target's language; also decides how sacreBLEU splits words (zh, ja, ko, th ...)."""
    architecture: Literal["encoder_decoder", "seq2seq"] | None = None
    """`encoder_decoder`: a BERT-family encoder and a decoder; `seq2seq`: a checkpoint that is both already (Marian, T5, mBART,
    M2M100, NLLB); null: what the checkpoint is."""
    decoder: Name = "encoder"
    """encoder_decoder: `encoder` starts the decoder from the encoder's weights, `new` at random; or a model to take it from."""
    decoder_layers: Count | None = None
    """encoder_decoder: layers of the decoder; null: half the encoder's, or all of the model given as `decoder`."""
    warm_start: bool = True
    """Whether pretrained weights are used; false: the same shape from random weights, to compare with."""
    target_tokenizer: Name | None = None
    """encoder_decoder: `train` makes one from the target side, `source` shares the encoder's, or a model to take it from;
    null: that of the model given as `decoder`, else `train`."""
    target_vocabulary: Annotated[int, Field(ge=LEAST)] | None = None
    """Tokens of a trained target tokenizer; null: 8,000, from 100,000 pairs on 16,000, from a million on 32,000."""
    prefix: str = ""
    """What stands before every source text, such as T5's `translate English to German: `."""
    beams: Count = 5
    """Hypotheses of the beam search; 1: greedy."""
    length_penalty: Annotated[float, UsedWith(beams=Not(1))] = 1.0
    """Exponent of the length by which a hypothesis' score is divided: above 1 favours longer ones."""
    translated_rows: Annotated[int, Field(ge=0)] = 200
    """Validation rows that are translated, greedily, at each evaluation while training; at the end all are."""
    length_ratio: Annotated[float, Field(gt=0)] | None = None
    """Longest target allowed, in tokens, for each token of source + 8; null: what train shows, and a quarter more."""
    longest_source: Count | None = None
    """Longer texts are translated in pieces; null: the longest of train, in tokens, and half more."""

    _sides: Sides | None = PrivateAttr(None)

    def models(self) -> dict[str, list[str]]:
        named = {"decoder": self.decoder, "target_tokenizer": self.target_tokenizer}
        words = (None, "encoder", "new", "train", "source")
        return {setting: [model] for setting, model in named.items() if model not in words}

    def input_columns(self) -> list[str]:
        return [self.source]

    def target_columns(self) -> list[str]:
        return [self.target]

    def metric_names(self) -> list[str]:
        return ["token_accuracy", "bleu", "chrf"]

    def check_settings(self, training: TrainingConfig, problems: Problems) -> None:
        if self.source == self.target:
            problems.add(f"task.target: found {self.target!r}, which is task.source as well; allowed: a column of its own")
        check_no_classes(training, "a translation", problems)
        if training.augment is not None:
            problems.add("training.augment: a changed source would no longer mean what its target says; allowed: null")
        if training.best_metric in ("bleu", "chrf") and not self.translated_rows:
            problems.add(f"training.best_metric: found {training.best_metric!r} with task.translated_rows 0; allowed: 1 or more")
        origin = self._target_from()
        if self.target_vocabulary is not None and origin != "train" and self.architecture != "seq2seq":
            problems.add(
                f"task.target_vocabulary: found {self.target_vocabulary}, but the target's tokenizer is not trained; it is from "
                f"{origin!r}; allowed: null, or task.target_tokenizer: train"
            )
        if self.architecture == "seq2seq":
            self._check_whole(problems)

    def _check_whole(self, problems: Problems) -> None:
        """Adds settings of a decoder to be made, where the checkpoint brings one."""
        given = {name: getattr(self, name) for name in ("decoder_layers", "target_tokenizer", "target_vocabulary")}
        given |= {"decoder": self.decoder} if self.decoder != "encoder" else {}
        for name, value in given.items():
            if value is not None:
                problems.add(f"task.{name}: found {value!r}; a seq2seq checkpoint has its own; leave it out")

    def fit(self, train: Rows, problems: Problems) -> Self:
        return self

    def check(self, rows: Rows, problems: Problems, targets: bool = True) -> None:
        check_pairs(rows, self.source, self.target if targets else None, problems)

    def filter(self, train: Rows, names: Sequence[str]) -> dict[int, BadRow]:
        return filter_pairs(train, self.source, self.target, names)

    def keys(self, rows: Rows) -> Iterator[str]:
        return (str(cell).strip() for cell in rows.columns[self.source])

    def strata(self, rows: Rows) -> np.ndarray:
        return np.zeros(len(rows), np.int64)

    def prepare(self, checkpoint: Checkpoint, train: Rows) -> Self:
        """With the target's tokenizer, trained where that is asked for, and the lengths that train shows."""
        whole = bool(checkpoint.config.is_encoder_decoder)
        kind = "seq2seq" if whole and checkpoint.config.model_type != MADE_HERE else "encoder_decoder"
        if self.architecture not in (None, kind):
            what = "is an encoder-decoder already" if kind == "seq2seq" else "is an encoder alone"
            raise UserError(f"task.architecture: found {self.architecture}; {checkpoint.source.name} {what}; allowed: {kind}")
        task = super().prepare(checkpoint, train).model_copy(update={"architecture": kind})
        if whole:
            problems = Problems()
            task._check_whole(problems)
            problems.raise_if_any()
        if kind == "seq2seq":
            task._sides = task._seq2seq_sides(checkpoint)
        elif whole:  # it was made so before, and goes on learning
            task._sides = Sides.of_encoder_decoder(checkpoint.tokenizer, own_target(checkpoint), self.prefix)
        else:
            most = decoder_limit(task.decoder, self.max_length, task.max_length or 512)
            task = task.model_copy(update={"max_length": most})
            texts = [str(cell).strip() for cell in train.columns[self.target]]
            setting = "target_tokenizer" if self.target_tokenizer else "decoder"
            target = choose_target(self._target_from(), setting, checkpoint.tokenizer, texts, self.target_vocabulary)
            task._sides = Sides.of_encoder_decoder(checkpoint.tokenizer, target, self.prefix)
        task.sides.check_room(task.max_length or 512, self.longest_source)
        return task._measure(train)

    def _seq2seq_sides(self, checkpoint: Checkpoint) -> Sides:
        return Sides.of_seq2seq(checkpoint, self.source_language, self.target_language, self.prefix)

    def _target_from(self) -> str:
        """Where the target's tokenizer comes from: `train`, `source` or a model."""
        return self.target_tokenizer or (self.decoder if self.decoder not in ("encoder", "new") else "train")

    def _measure(self, train: Rows) -> Self:
        """How long targets get: `generate` by itself stops at 20 tokens, or far too late."""
        chosen = train.select(draw_rows(len(train), SAMPLE))
        features, _ = self.encode(next(chosen.batches(SAMPLE)), self.sides.source)
        source, target = (np.array([len(ids) for ids in features[name]]) for name in ("input_ids", "labels"))
        ratio = float(np.quantile(target / (source + HEAD_START), 0.999)) * 1.25
        longest = max(16, math.ceil(float(np.quantile(source, 0.999)) * 1.5))
        most = min(self.longest_source or longest, self.max_length or 512)
        return self.model_copy(update={"length_ratio": self.length_ratio or round(ratio, 3), "longest_source": most})

    @property
    def sides(self) -> Sides:
        """The tokenizers of source and target."""
        assert self._sides is not None, "prepare, or restore, gives a task its tokenizers"
        return self._sides

    def save_parts(self, folder: Path) -> None:
        """The target's tokenizer: one folder has room for one `tokenizer.json`, which is the source's."""
        if not self.sides.own_format:
            with replacing_folder(folder / TARGET_FOLDER) as part:
                self.sides.target.save_pretrained(part)

    def _with_length(self, checkpoint: Checkpoint) -> Self:
        task = super()._with_length(checkpoint)
        if self.longest_source and self.longest_source > (task.max_length or 512):
            raise UserError(
                f"task.longest_source: found {self.longest_source}; allowed: up to task.max_length, {task.max_length}"
            )
        return task

    def restore(self, checkpoint: Checkpoint, parts: ModelSource | None = None) -> Self:
        task = super().restore(checkpoint)
        if checkpoint.config.model_type == MADE_HERE or self.architecture == "encoder_decoder":
            target = own_target(checkpoint, parts, ours=self.architecture is not None)
            task._sides = Sides.of_encoder_decoder(checkpoint.tokenizer, target, task.prefix)
        else:
            task._sides = task._seq2seq_sides(checkpoint)
        return task

    def unused_by_model(self, scored: bool) -> dict[str, str]:
        """Languages that the model does not choose among; that of the target decides how translations are scored."""
        names = {"source_language", "target_language"} - self.sides.language_settings - ({"target_language"} if scored else set())
        return dict.fromkeys(names, "the model translates in one direction")

    def encode(
        self, columns: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, targets: bool = True
    ) -> tuple[dict[str, Any], int]:
        limit = self.max_length or 512
        sources = [str(cell).strip() for cell in columns[self.source]]
        ids, cut = self.sides.source_ids(sources, limit)
        features: dict[str, Any] = {"input_ids": ids, "sources": np.array(sources, object)}
        if targets:
            references = [str(cell).strip() for cell in columns[self.target]]
            labels, also = self.sides.target_ids(references, limit)
            cut |= also
            features |= {"labels": labels, "decoder_input_ids": self.sides.decoder_ids(labels)}
            features["references"] = np.array(references, object)
        return features, len(cut)

    def encoding(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
        sides = self.sides
        told = [tokenizer_fingerprint(sides.source), tokenizer_fingerprint(sides.target)]
        tokens = [sides.own_format, sides.start, sides.end, sides.forced, sides.prefix]
        return None if None in told else {"task": self.document(), "tokenizers": told, "tokens": tokens}

    def fill(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        return {"input_ids": tokenizer.pad_token_id, "labels": IGNORED, "decoder_input_ids": self.sides.pad}

    def auto_class(self) -> Any:
        return AutoModelForSeq2SeqLM

    def build_model(self, checkpoint: Checkpoint, training: TrainingConfig) -> PreTrainedModel:
        sides = self.sides
        if checkpoint.config.is_encoder_decoder:
            model: Any = build_whole(checkpoint, self.warm_start, training.dropout, training.attention_dropout)
            set_special_tokens(model, sides.start, sides.end, sides.pad, sides.forced)
        else:
            model = build_encoder_decoder(
                checkpoint, self.decoder, self.decoder_layers, sides.target, self.target_tokenizer == "source",
                self.warm_start, training.dropout, training.attention_dropout,
            )  # fmt: skip
        # For those who call `generate` without this toolkit: it would stop at 20 tokens.
        model.generation_config.max_length = None
        model.generation_config.max_new_tokens = self._limit(self.longest_source or 512)
        set_search(model.generation_config, self.beams, self.length_penalty)
        return model

    def _limit(self, source_tokens: int) -> int:
        """The most tokens of a target, by its source's."""
        return min(self.max_length or 512, math.ceil((self.length_ratio or 2.0) * (source_tokens + HEAD_START)))

    def label_smoothing(self, training: TrainingConfig) -> float:
        """0.1 unless asked otherwise (Vaswani et al. 2017, 1706.03762)."""
        return 0.1 if training.label_smoothing == "auto" else super().label_smoothing(training)

    def counts(self, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, float]:
        """Rows, and the target tokens by which the loss is divided."""
        labels = batch["labels"]
        return {"rows": float(len(labels)), "cross_entropy": float((labels != IGNORED).sum())}

    def loss(self, outputs: Any, batch: Batch, options: LossOptions = PLAIN_LOSS) -> dict[str, torch.Tensor]:
        """Summed cross-entropy over logits of shape (rows, target tokens, vocabulary), computed in fp32."""
        # Padding goes along and counts nothing: to pick the other tokens out, and to put their gradients back, costs far more.
        logits, labels = outputs.logits.flatten(0, 1).float(), batch["labels"].flatten()
        smoothing = options.label_smoothing
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
        return {"cross_entropy": total}

    def step_metrics(self, outputs: Any, batch: Batch) -> dict[str, tuple[torch.Tensor, str]]:
        """`token_accuracy`: the share of target tokens that are the likeliest ones after the target's beginning."""
        return {"token_accuracy": (_right(outputs, batch).sum(), "cross_entropy")}

    def draft_rows(self, rows: int) -> np.ndarray | None:
        chosen = np.zeros(rows, bool)
        chosen[draw_rows(rows, self.translated_rows)] = True
        return chosen

    def draft_settings(self, rows: int) -> dict[str, float]:
        """Return how many rows are translated during training, and with how many beams: none and greedily, or a few."""
        return {"translated_rows": min(rows, self.translated_rows), "beams": 1} if self.translated_rows else {}

    @property
    def longest_piece(self) -> int:
        """Source tokens from which on a text is translated in pieces."""
        most = self.max_length or 512
        return min(self.longest_source or most, most)

    def translate(self, model: Any, texts: list[str], beams: int | None = None, rows: int = ROWS) -> tuple[list[str], np.ndarray]:
        """Translate texts of any length; see `seq2seq.generate.translate`. Both `answer` and `Translator` call this."""
        beams = beams or self.beams
        return translate(model, self.sides, texts, self.longest_piece, self._limit, beams, self.length_penalty, rows)

    def predict_batch(
        self, model: Any, batch: Batch, chosen: np.ndarray | None = None, texts: Arrays | None = None
    ) -> tuple[Arrays, Items]:
        """`prediction` (objects, rows): translations of the whole `sources` in `texts`, None for rows that are not `chosen`;
        `pieces` (int64, rows): in how many pieces; where the targets are known also `right` and `of`, how many of their tokens
        are the likeliest ones. These, and the losses, are of sources and targets truncated to `max_length`."""
        rows, items = len(batch["input_ids"]), dict[str, tuple[float, float]]()
        answers: Arrays = {"prediction": np.full(rows, None, object), "pieces": np.zeros(rows, np.int64)}
        if "labels" in batch:
            outputs = model(**model_inputs(batch))
            items = self.items(outputs, batch)
            answers["right"] = _right(outputs, batch).sum(1).cpu().numpy()
            answers["of"] = (batch["labels"] != IGNORED).sum(1).cpu().numpy()
        which = np.arange(rows) if chosen is None else np.flatnonzero(chosen)
        if len(which):
            assert texts is not None, "texts are translated, since ids may be truncated"
            # At most as many pieces at once as there are rows: a batch was made small where memory is short.
            translations, pieces = self.translate(
                model, texts["sources"][which].tolist(), self.beams if chosen is None else 1, rows
            )
            answers["prediction"][which], answers["pieces"][which] = translations, pieces
        return answers, items

    def describe(self, answers: Arrays, probabilities: bool = False) -> dict[str, list[Any]]:
        return {"translation": answers["prediction"].tolist()}

    def metrics(self, answers: Arrays, targets: Arrays) -> dict[str, float]:
        """`token_accuracy`, of texts truncated to `max_length`; and over the rows that were translated, whole and as users get
        them, the metrics of `compute_translation_metrics`."""
        figures = {"token_accuracy": float(answers["right"].sum() / answers["of"].sum())}
        done = np.array([text is not None for text in answers["prediction"]])
        if done.any():
            found, wanted = (part[done].tolist() for part in (answers["prediction"], targets["references"]))
            figures |= compute_translation_metrics(found, wanted, self.target_language, brief=not done.all())
        return figures

    def metric_to_compare(self, asked: str | None) -> str:
        """Return `bleu`, or `chrf` where it is asked for: the accuracy of the next token says little about translations."""
        return "bleu" if asked in (None, "loss", "token_accuracy") else str(asked)

    def sums(self, metric: str, answers: Arrays, targets: Arrays) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
        """Sum sacreBLEU's statistics of each row, as it does itself."""
        if metric == "token_accuracy":
            counts = np.stack([answers["right"], answers["of"]], 1).astype(float)
            return counts, lambda sums: np.asarray(sums[:, 0] / sums[:, 1])
        texts = answers["prediction"].tolist(), targets["references"].tolist()
        return translation_statistics(metric, *texts, self.target_language)

    def example_lines(self, answers: Arrays, targets: Arrays) -> list[str]:
        """A few sources with their translations and references."""
        lines = []
        if long := int((answers["pieces"] > 1).sum()):
            lines.append(
                f"{long} of {len(answers['pieces'])} sources have more than {self.longest_piece} tokens and were translated in "
                f"pieces, as by `translate`; loss and token_accuracy are of the first {self.max_length} tokens of each text"
            )
        shown = {"source": targets["sources"], "translation": answers["prediction"], "reference": targets["references"]}
        for row in np.linspace(0, len(targets["references"]) - 1, SHOWN).astype(np.int64):
            lines += [f"{name + ':':<12} {texts[row]}" for name, texts in shown.items()]
            lines[-1] += "\n"
        return lines

    def signatures(self) -> dict[str, str]:
        return translation_signatures(self.target_language)

    def report(self, train: Rows) -> list[str]:
        return describe_pairs(train, self.source, self.target)


def _right(outputs: Any, batch: Batch) -> torch.Tensor:
    """bool of shape (rows, target tokens): where the likeliest token is the right one; padding is never right."""
    # In fp32: PyTorch's argmax over bf16 takes six times as long on CPUs.
    return torch.eq(outputs.logits.detach().float().argmax(-1), batch["labels"])

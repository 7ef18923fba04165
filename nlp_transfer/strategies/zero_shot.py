"""Zero-shot classification: labels are described in words, and no row with a label is learned from.

Yin et al. 2019, "Benchmarking Zero-shot Text Classification: Datasets, Evaluation and Entailment Approach", 1909.00161.
A baseline, and a labeller of rows that nobody has labelled.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import AfterValidator, field_validator
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import TokenTable, encode_rows
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.checkpoint import Checkpoint, check_head, forbid_new_parameters
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, HeadConfig
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.schema import DataConfig, Name, Positive
from nlp_transfer.strategies import SENTENCE_MODEL, Job, Phase, State, Strategy, View
from nlp_transfer.strategies.common.label_words import describe_labels
from nlp_transfer.strategies.common.linear_heads import freeze_for_computed_head, last_linear, layer_inputs, set_layer
from nlp_transfer.tasks import Task
from nlp_transfer.utils.console import Steps
from nlp_transfer.utils.errors import Problems, UserError

BATCH = 64


def _has_gap(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("text with one {}, where the label's words go")
    return template


class ZeroShot(Strategy):
    """Answers with the label whose description fits the text best. Of train the texts are used at most, never the labels; with
    `labels` here or in `task.labels` no train is needed."""

    chooses_parameters: ClassVar[bool] = True

    by: Literal["embedding", "entailment"] = "embedding"
    """How fit is judged: by the cosine of the vectors of text and description, for encoders of whole sentences; or by an
    entailment (NLI) checkpoint, whose answers for the texts of train and of `data.unlabelled` a linear layer on its encoder
    then learns to give, so that each text is read once and not once for each label."""
    labels: dict[str, Name] = {}
    """What labels mean, in words; others are described by their names, with spaces for underscores."""
    template: Annotated[str, AfterValidator(_has_gap)] = "This text is about {}."
    """The sentence that words are put into."""
    scale: Annotated[Positive, UsedWith(by="embedding")] = 20.0
    """By embedding: what cosines are multiplied with to make probabilities of them."""
    similarity: Annotated[float, AfterValidator(float), UsedWith(by="embedding")] = 0.3
    """By embedding, with several labels a row: the cosine from which on a label fits."""

    def default_model(self) -> str | None:
        return SENTENCE_MODEL if self.by == "embedding" else None

    def preferred_head(self) -> HeadConfig:
        """The mean over all tokens, of length 1: a linear layer over it that holds vectors of length 1 gives cosines."""
        return HeadConfig(pooling="mean", normalize=True)

    def takes_steps(self) -> bool:
        return False

    def uses_unlabelled(self) -> bool:
        return self.by == "entailment"

    def check_data(self, data: DataConfig, task: Task, problems: Problems) -> None:
        if data.train is None and "label" not in task.prediction_kind:
            problems.add(
                f"strategy.name: found zero_shot beside answers that are {task.prediction_kind}s; allowed: a task with labels"
            )
        elif self.by == "entailment" and data.train is None and data.unlabelled is None:
            problems.add(
                "data.unlabelled: is required and was not given; zero_shot by entailment fits a layer to what the checkpoint "
                "says of texts; allowed: data.unlabelled (texts alone), data.train, or strategy.by: embedding, for which none "
                "are needed"
            )

    def name_labels(self, task: Task) -> Task:
        """A copy with the described labels, where the task's settings name none."""
        named = getattr(task, "labels", None) or not hasattr(task, "labels")
        return task if named or not self.labels else task.model_copy(update={"labels": list(self.labels)})

    @field_validator("labels", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list names labels that their names describe."""
        if isinstance(value, (list, Mapping)) and any(isinstance(name, str) and not name.strip() for name in value):
            raise ValueError("labels that are not empty")
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: describe_labels([name], {}, "strategy.labels")[0] for name in value}
        return value

    def unused(self, task: Task) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if self.by == "embedding":
            reasons["data.shots"] = "zero_shot by embedding learns from no row of train"
            reasons["data.unlabelled"] = "zero_shot by embedding learns from no rows; nlp-transfer predict labels them afterwards"
        if task.prediction_kind != "labels":
            reasons["strategy.similarity"] = "a row has one label, that of the description that fits best"
        return reasons

    def wrap(self, model: PreTrainedModel) -> PreTrainedModel:
        """Fixes everything.

        Raises:
            UserError: the answer is a text or a number, or the head is not a single layer over vectors of length 1.
        """
        freeze_for_computed_head(model, "strategy.name: found zero_shot")
        if self.by == "embedding":
            if not isinstance(model, EncoderHeadForSequenceClassification):
                raise UserError(
                    "task.head: found family; zero_shot compares the vectors of texts, and a family's head sees what its pooler "
                    "makes of the first token, as may one of a task that builds its model itself; allowed: null, or {pooling: "
                    "mean, normalize: true}"
                )
            if not model.config.normalize or model.config.layers == "mix":
                raise UserError(
                    f"task.head: found normalize {str(model.config.normalize).lower()}, layers {model.config.layers}; cosines "
                    "are those of vectors of length 1, and a mix of layers must be trained; allowed: normalize true, layers last"
                )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        model.to(job.device)  # type: ignore[arg-type]
        sentences = self.sentences(job.task.labels)  # type: ignore[attr-defined]
        several = model.config.problem_type == "multi_label_classification"
        if self.by == "embedding":
            self._from_embeddings(job, model, sentences, several)
        else:
            self._from_entailment(job, model, sentences, several)
        return job

    def sentences(self, labels: list[str]) -> list[str]:
        """A description of each label.

        Raises:
            UserError: words are given for a label that does not exist.
        """
        return [self.template.replace("{}", words) for words in describe_labels(labels, self.labels, "strategy.labels")]

    def _from_embeddings(self, job: Job, model: Any, sentences: list[str], several: bool) -> None:
        alone = job.task.model_copy(update={"text_pair": None})
        tokenizer = job.checkpoint.tokenizer
        rows = from_columns({alone.input_columns()[0]: sentences}, "strategy.labels")
        table = encode_rows(rows, lambda columns: alone.encode(columns, tokenizer, False), alone.fill(tokenizer))
        layer = last_linear(model, "strategy.name: found zero_shot")
        vectors = layer_inputs(model, layer, table)
        set_layer(layer, self.scale * vectors, np.full(len(vectors), -self.scale * self.similarity if several else 0.0))

    def _from_entailment(self, job: Job, model: Any, sentences: list[str], several: bool) -> None:
        splits = [name for name in ("train", "unlabelled") if name in job.tables]
        logits = torch.cat([entailments(job, job.rows[name], sentences, f"labelling {name}") for name in splits])
        # One label of several: which description follows most. Any number: whether each follows rather than its contrary.
        answers = (logits[..., 0] - logits[..., 1]).sigmoid() if several else logits[..., 0].softmax(-1)
        texts = TokenTable.concatenate([replace(job.tables[name], dense={}) for name in splits])
        layer = last_linear(model, "strategy.name: found zero_shot")
        set_layer(layer, *fit_answers(layer_inputs(model, layer, texts), answers.double(), several))

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None


def entailments(job: Job, rows: Rows, sentences: list[str], what: str = "labelling") -> torch.Tensor:
    """float32 of shape (rows, sentences, 2): the logits of the job's checkpoint, an entailment model, that a sentence follows
    from a row's text, and that it does not (of three answers: that it contradicts it).

    Raises:
        UserError: the checkpoint does not classify, or none of its labels is called entailment.
    """
    model, follows, not_follows = _entailment_model(job.checkpoint)
    model.eval().to(job.device)
    tokenizer, pad = job.checkpoint.tokenizer, job.task.fill(job.checkpoint.tokenizer)
    texts = [
        " ".join(str(cell) for cell in cells) for cells in zip(*(rows.columns[n] for n in job.task.input_columns()), strict=True)
    ]
    found = torch.empty(len(texts), len(sentences), 2)
    batches = inference_batches(np.array([[len(text)] for text in texts]), max(1, BATCH // len(sentences)))
    with Steps(what, len(batches)) as progress, torch.inference_mode():
        for batch in batches:
            pairs = [(texts[row], sentence) for row in batch for sentence in sentences]
            for start in range(0, len(pairs), BATCH):
                part = pairs[start : start + BATCH]
                encoded = tokenizer(
                    [text for text, _ in part], [sentence for _, sentence in part], truncation="only_first", padding=True,
                    max_length=job.checkpoint.max_length, return_tensors="pt",
                )  # fmt: skip
                inputs = {name: encoded[name].to(job.device) for name in (*pad, "attention_mask") if name in encoded}
                logits = model(**inputs).logits.float().cpu()[:, [follows, not_follows]]
                places = torch.arange(start, start + len(part))
                found[torch.from_numpy(batch)[places // len(sentences)], places % len(sentences)] = logits
            progress.advance()
    return found


def _entailment_model(checkpoint: Checkpoint) -> tuple[Any, int, int]:
    """The whole checkpoint, and which of its answers say that a sentence follows, and that it does not."""
    labels = {int(i): str(label) for i, label in (checkpoint.config.id2label or {}).items()}
    follows = [i for i, label in labels.items() if label.lower().startswith("entail")]
    others = [i for i in labels if i not in follows]
    contrary = [i for i in others if labels[i].lower().startswith("contra")] or others
    if len(follows) != 1 or len(contrary) != 1:
        raise UserError(
            f"strategy.by: found entailment; {checkpoint.source.name} answers {', '.join(labels.values())}; allowed: a model "
            "that was fine-tuned on entailment (NLI), with a label called entailment and one other or one called contradiction"
        )
    check_head(checkpoint)
    model = checkpoint.load(AutoModelForSequenceClassification)
    forbid_new_parameters(model, checkpoint.source.name)
    return model, follows[0], contrary[0]


def fit_answers(inputs: np.ndarray, answers: torch.Tensor, several: bool, penalty: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Weight (labels, width) and bias (labels,) of the layer whose answers come nearest to given probabilities.

    Args:
        inputs: float32 of shape (rows, width).
        answers: float64 of shape (rows, labels); unless `several`, each row sums to 1.
        penalty: on half the squared weights; it keeps them finite where answers are certain.
    """
    seen = torch.from_numpy(inputs).double()
    weight = torch.zeros(answers.shape[1], seen.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(answers.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = seen @ weight.T + bias
        wrong = F.binary_cross_entropy_with_logits if several else F.cross_entropy
        loss = wrong(logits, answers, reduction="sum") + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach().numpy(), bias.detach().numpy()

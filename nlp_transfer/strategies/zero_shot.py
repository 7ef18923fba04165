"""Zero-shot classification: predict labels from their descriptions, without labeled rows.

When to use it: as a baseline, or to label the first rows.

Cost: by embedding, one forward pass per label description. By entailment, one forward pass per row and label, and fitting a
    linear layer.

Yin et al. 2019, "Benchmarking Zero-shot Text Classification: Datasets, Evaluation and Entailment Approach", 1909.00161.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, field_validator
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nlp_transfer.data.sources.rows import Rows, from_columns
from nlp_transfer.data.tokens import TokenTable
from nlp_transfer.data.windows import inference_batches
from nlp_transfer.models.checkpoint import Checkpoint, check_head, forbid_new_parameters
from nlp_transfer.models.heads import EncoderHeadForSequenceClassification, HeadConfig
from nlp_transfer.settings.applicability import UsedWith
from nlp_transfer.settings.base_settings import Name, Positive
from nlp_transfer.settings.schema import DataConfig
from nlp_transfer.strategies import SENTENCE_MODEL, Job, Phase, State, Strategy, StrategyTraits, View
from nlp_transfer.strategies.common.label_words import describe_labels
from nlp_transfer.strategies.common.linear_heads import freeze_for_computed_head, last_linear, layer_inputs, set_layer
from nlp_transfer.tasks import Task, encode_table
from nlp_transfer.utils.console import Steps
from nlp_transfer.utils.errors import Problems, UserError

BATCH = 64


def _check_template(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("text with one {}, which is replaced by the description of the label")
    return template


class ZeroShot(Strategy):
    """Predict the label whose description fits the text best.

    Training labels are never used. Training rows are optional if `labels` or `task.labels` is set.
    """

    by: Literal["embedding", "entailment"] = "embedding"
    """`embedding`: compare the vectors of text and description by cosine, with a sentence encoder. `entailment`: use an
    entailment (NLI) model. Its predictions for the texts of train and `data.unlabelled` are distilled into a linear layer on
    its encoder. The resulting model needs one forward pass per text instead of one per text and label."""
    labels: dict[str, Name] = {}
    """Description of each label. Default: the name of the label, with underscores replaced by spaces."""
    template: Annotated[str, AfterValidator(_check_template)] = "This text is about {}."
    """Sentence with the placeholder {}, which is replaced by the description of a label."""
    scale: Annotated[Positive, UsedWith(by="embedding")] = 20.0
    """With `by: embedding`, the factor on the cosines before the softmax."""
    similarity: Annotated[float, AfterValidator(float), UsedWith(by="embedding")] = 0.3
    """With `by: embedding` in multi-label tasks, the minimum cosine for predicting a label."""

    @property
    def traits(self) -> StrategyTraits:
        return StrategyTraits(
            needs_task="classes",
            owns_parameters=True,
            owns_phases=True,
            takes_steps=False,
            needs_train=False,
            uses_weights=False,
            uses_unlabelled=self.by == "entailment",
            default_model=SENTENCE_MODEL if self.by == "embedding" else None,
            head=HeadConfig(pooling="mean", normalize=True),  # a linear layer on vectors of length 1 computes cosines
        )

    def check(self, data: DataConfig, task: Task, problems: Problems) -> Task:
        # `needs_task` already refuses a task without classes.
        if task.traits.classes and self.by == "entailment" and data.train is None and data.unlabelled is None:
            problems.add(
                "data.unlabelled: is required and was not given; zero_shot by entailment fits a layer to the "
                "predictions of the checkpoint; allowed: data.unlabelled (texts alone), data.train, or strategy.by: embedding, "
                "which needs no texts"
            )

        if self.by == "embedding":
            problems.no_effect("data.shots", "zero_shot by embedding does not use training rows")
            problems.no_effect(
                "data.unlabelled",
                "zero_shot by embedding does not use them; label them afterwards with nlp-transfer predict",
            )
        if task.traits.prediction != "labels":
            problems.no_effect("strategy.similarity", "each row has exactly one label, the one with the best description")
        if data.train is None and self.labels and task.traits.classes and not task.scorer.labels:
            return task.model_copy(update={"labels": list(self.labels)})
        return task

    @field_validator("labels", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        """Convert a list of labels to a mapping from labels to their default descriptions."""
        if isinstance(value, (list, Mapping)) and any(isinstance(name, str) and not name.strip() for name in value):
            raise ValueError("labels that are not empty")
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {name: describe_labels([name], {}, "strategy.labels")[0] for name in value}
        return value

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Freeze all parameters.

        Raises:
            UserError: If the head is not a single layer, or, with `by: embedding`, not one on mean vectors of length 1.
        """
        freeze_for_computed_head(model, "strategy.name: found zero_shot")
        if self.by == "embedding":
            if not isinstance(model, EncoderHeadForSequenceClassification):
                raise UserError(
                    "task.head: found family; zero_shot compares mean vectors of texts, but this head reads the first token or "
                    "is built by the task; allowed: null, or {pooling: mean, normalize: true}"
                )
            if not model.config.normalize or model.config.layers == "mix":
                raise UserError(
                    f"task.head: found normalize {str(model.config.normalize).lower()}, layers {model.config.layers}; cosines "
                    "need vectors of length 1, and a mix of layers must be trained; allowed: normalize true, layers last"
                )
        return model

    def prepare_data(self, job: Job, model: PreTrainedModel) -> Job:
        model.to(job.device)  # type: ignore[arg-type]
        sentences = self.sentences(list(job.task.scorer.labels))
        multi_label = model.config.problem_type == "multi_label_classification"
        if self.by == "embedding":
            self._from_embeddings(job, model, sentences, multi_label)
        else:
            self._from_entailment(job, model, sentences, multi_label)
        return job

    def sentences(self, labels: list[str]) -> list[str]:
        """Insert the description of each label into the template.

        Raises:
            UserError: If `labels` contains an unknown label.
        """
        return [
            self.template.replace("{}", description) for description in describe_labels(labels, self.labels, "strategy.labels")
        ]

    def _from_embeddings(self, job: Job, model: Any, sentences: list[str], multi_label: bool) -> None:
        task = job.task.model_copy(update={"text_pair": None})
        rows = from_columns({task.inputs[0]: sentences}, "strategy.labels")
        table = encode_table(task, rows, job.checkpoint.tokenizer, targets=False)
        layer = last_linear(model, "strategy.name: found zero_shot")
        vectors = layer_inputs(model, layer, table)
        set_layer(layer, self.scale * vectors, np.full(len(vectors), -self.scale * self.similarity if multi_label else 0.0))

    def _from_entailment(self, job: Job, model: Any, sentences: list[str], multi_label: bool) -> None:
        splits = [name for name in ("train", "unlabelled") if name in job.tables]
        logits = torch.cat([entailments(job, job.rows[name], sentences, f"labeling {name}") for name in splits])
        # Single-label: softmax over the entailment logits of all labels.
        # Multi-label: softmax over entailment and contradiction for each label.
        targets = (logits[..., 0] - logits[..., 1]).sigmoid() if multi_label else logits[..., 0].softmax(-1)
        texts = TokenTable.concatenate([replace(job.tables[name], dense={}) for name in splits])
        layer = last_linear(model, "strategy.name: found zero_shot")
        set_layer(layer, *fit_soft_labels(layer_inputs(model, layer, texts), targets.double(), multi_label))

    def next_phase(self, state: State, view: View) -> Phase | None:
        return None


def entailments(job: Job, rows: Rows, sentences: list[str], label: str = "labeling") -> torch.Tensor:
    """Use the checkpoint of the job to predict whether each text entails each sentence.

    Returns:
        Logits of entailment and of its opposite, in this order, float32 of shape (rows, sentences, 2). If the checkpoint has
        three labels, the opposite is contradiction.

    Raises:
        UserError: If the checkpoint is not an entailment model.
    """
    model, entailment, contradiction = _entailment_model(job.checkpoint)
    model.eval().to(job.device)
    tokenizer = job.checkpoint.tokenizer
    texts = [" ".join(str(cell) for cell in cells) for cells in zip(*(rows.columns[n] for n in job.task.inputs), strict=True)]
    result = torch.empty(len(texts), len(sentences), 2)
    batches = inference_batches(np.array([[len(text)] for text in texts]), max(1, BATCH // len(sentences)))
    with Steps(label, len(batches)) as progress, torch.inference_mode():
        for batch in batches:
            pairs = [(texts[row], sentence) for row in batch for sentence in sentences]
            for start in range(0, len(pairs), BATCH):
                chunk = pairs[start : start + BATCH]
                encoded = tokenizer(
                    [text for text, _ in chunk], [sentence for _, sentence in chunk], truncation="only_first", padding=True,
                    max_length=job.checkpoint.max_length, return_tensors="pt",
                )  # fmt: skip
                inputs = {name: encoded[name].to(job.device) for name in tokenizer.model_input_names if name in encoded}
                logits = model(**inputs).logits.float().cpu()[:, [entailment, contradiction]]
                places = torch.arange(start, start + len(chunk))
                result[torch.from_numpy(batch)[places // len(sentences)], places % len(sentences)] = logits
            progress.advance()
    return result


def _entailment_model(checkpoint: Checkpoint) -> tuple[Any, int, int]:
    """Load the entailment model. Return it with the ids of its labels for entailment and for the opposite."""
    labels = {int(i): str(label) for i, label in (checkpoint.config.id2label or {}).items()}
    entailment = [i for i, label in labels.items() if label.lower().startswith("entail")]
    others = [i for i in labels if i not in entailment]
    contradiction = [i for i in others if labels[i].lower().startswith("contra")] or others
    if len(entailment) != 1 or len(contradiction) != 1:
        raise UserError(
            f"strategy.by: found entailment; {checkpoint.source.name} has the labels {', '.join(labels.values())}; allowed: a "
            "model fine-tuned on entailment (NLI), with a label entailment, and one other label or one called contradiction"
        )
    check_head(checkpoint)
    model = checkpoint.load(AutoModelForSequenceClassification)
    forbid_new_parameters(model, checkpoint.source.name)
    return model, entailment[0], contradiction[0]


def fit_soft_labels(
    inputs: np.ndarray, targets: torch.Tensor, multi_label: bool, penalty: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a linear layer to target probabilities, with an L2 penalty.

    Args:
        inputs: float32 of shape (rows, width).
        targets: float64 of shape (rows, labels). Each row sums to 1, except with `multi_label`.
        penalty: Factor on half the sum of the squared weights. It keeps the weights finite if all targets are 0 or 1.

    Returns:
        The weight, float64 of shape (labels, width), and the bias, float64 of shape (labels,).
    """
    features = torch.from_numpy(inputs).double()
    weight = torch.zeros(targets.shape[1], features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weight.T + bias
        cross_entropy = F.binary_cross_entropy_with_logits if multi_label else F.cross_entropy
        loss = cross_entropy(logits, targets, reduction="sum") + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach().numpy(), bias.detach().numpy()

"""A deeper classification head on any encoder, as a model type of its own.

No family has a place for such a head. Saved under a family's class it would load without a word, with random weights;
under a model type of its own, plain transformers refuses it by name, and `import nlp_transfer` makes the Auto classes and
`pipeline` know it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from nlp_transfer.models.head_registration import MODEL_TYPE
from nlp_transfer.settings.schema import Count, Settings, Share
from nlp_transfer.settings.validation import validate
from nlp_transfer.utils.errors import Problems, UserError, shorten


class HeadConfig(Settings):
    """A head of the toolkit's own: pooling, hidden layers with GELU and dropout, and the output layer."""

    hidden: Annotated[list[Annotated[Count, Field(le=8192)]], Field(max_length=8)] = []
    """Sizes of the hidden layers, up to 8,192 each; none: a single linear layer."""
    dropout: Share | None = None
    """Dropout before each linear layer; overrides `training.dropout` for the head. null: `training.dropout` where that is set,
    else 0.1."""
    pooling: Literal["cls", "mean", "max"] = "mean"
    """How token vectors become one: the first token's, or the mean or maximum over real tokens."""
    layers: Literal["last", "mix"] = "last"
    """Whose vectors: the last layer's, or a learned mix of all layers' (Peters et al. 2018, 1802.05365)."""
    normalize: bool = False
    """Scale the vector to length 1, so that directions alone count."""


class EncoderHeadConfig(PretrainedConfig):
    """The encoder's configuration as a dict, and the shape of the head."""

    model_type = MODEL_TYPE

    encoder: dict[str, Any] | None = None
    pooling: str = "mean"
    hidden: list[int] | None = None
    head_dropout: float = 0.1
    layers: str = "last"
    normalize: bool = False

    def __init__(self, **kwargs: Any) -> None:
        # With encoder=None this is the empty configuration that transformers builds to find defaults.
        names = ("encoder", "pooling", "hidden", "head_dropout", "layers", "normalize")
        own = {name: kwargs.pop(name, getattr(type(self), name)) for name in names}
        super().__init__(**kwargs)
        self._check(own)
        for name, value in own.items():
            setattr(self, name, value)

    @staticmethod
    def _check(own: dict[str, Any]) -> None:
        """Raises a ValueError where a file's fields are none that this head can have."""
        shape = {"dropout" if name == "head_dropout" else name: value for name, value in own.items() if name != "encoder"}
        problems = Problems()
        validate(HeadConfig, shape | {"hidden": own["hidden"] or []}, problems, "config.json")
        encoder = own["encoder"]
        known = encoder is None or (isinstance(encoder, dict) and encoder.get("model_type") in set(CONFIG_MAPPING) - {MODEL_TYPE})
        if not known:
            problems.add(f"config.json.encoder: found {shorten(encoder)}; allowed: the configuration of an encoder")
        problems.raise_if_any()

    def has_shape(self, head: HeadConfig) -> bool:
        """Whether weights fit a head with these settings; dropout has none."""
        own = (self.pooling, self.hidden or [], self.layers, self.normalize)
        return own == (head.pooling, head.hidden, head.layers, head.normalize)

    def encoder_config(self) -> PretrainedConfig:
        fields = dict(self.encoder or {})
        if not fields:
            raise UserError("model: config.json has no `encoder`, the configuration of the encoder below the head")
        return AutoConfig.for_model(fields.pop("model_type"), **fields)


class RegressionOutput(nn.Linear):
    """The output layer of a regression, computed in fp32 even under autocast: in bf16 numbers near 2,000 are 8 apart.

    While a model is trained its weights produce standardized values, (y - `mean`) / `scale`. `fold` changes the weights so that
    they produce y itself, as a saved model has to. A folded layer can still return standardized values (`standardized_outputs`),
    from which y is computed in float64: near a large mean fp32 cannot tell close numbers apart.
    """

    mean: float = 0.0
    scale: float = 1.0
    offset: float | None = None
    """The bias of a folded layer in full precision; None: the layer is not folded."""
    standardized: bool = False
    """Whether a folded layer returns standardized values at the moment."""

    @classmethod
    def replace(cls, model: PreTrainedModel) -> "RegressionOutput | None":
        """Turns the output layer of a model into one, in place; None where no linear layer outside the encoder has one output."""
        encoder = f"{model.base_model_prefix}."
        outputs = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == 1 and not name.startswith(encoder)
        ]
        if not outputs:
            return None
        outputs[-1].__class__ = cls
        return outputs[-1]  # type: ignore[return-value]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.float(), None if self.bias is None else self.bias.float()
        if self.standardized and self.offset is not None:
            weight, bias = weight / self.scale, weight.new_tensor([(self.offset - self.mean) / self.scale])
        with torch.autocast(input.device.type, enabled=False):
            return F.linear(input.float(), weight, bias)

    def fold(self) -> None:
        """Makes the weights produce the column's units. Does nothing where that has been done."""
        if self.offset is None:
            self.offset = self.stored_bias * self.scale + self.mean
            self._set(self.weight.detach().cpu().double() * self.scale, self.offset)

    def unfold(self, mean: float, scale: float, offset: float | None = None) -> None:
        """The inverse, for weights that were loaded from a saved model.

        Args:
            mean, scale: of the values that the weights shall produce from here on.
            offset: the bias in full precision, where it is known.
        """
        bias = self.stored_bias if offset is None else offset
        self._set(self.weight.detach().cpu().double() / scale, (bias - mean) / scale)

    @property
    def stored_bias(self) -> float:
        """The bias as the weights have it; 0 where there is none."""
        return 0.0 if self.bias is None else float(self.bias.detach())

    def _set(self, weight: torch.Tensor, bias: float) -> None:
        with torch.no_grad():
            self.weight.copy_(weight)
            if self.bias is not None:
                self.bias.fill_(bias)


def regression_outputs(model: nn.Module) -> list[RegressionOutput]:
    """The output layers of the regressions that a model is trained for; of a head that peft has copied the copy comes last."""
    return [module for module in model.modules() if isinstance(module, RegressionOutput)]


def fold_outputs(model: nn.Module) -> None:
    """Makes every regression in a trained model, those of further tasks too, answer in the units of its column."""
    for layer in regression_outputs(model):
        layer.fold()


@contextmanager
def standardized_outputs(model: nn.Module) -> Iterator[None]:
    """Within it, regressions return standardized values, whether their layers are folded or not."""
    layers = regression_outputs(model)
    for layer in layers:
        layer.standardized = True
    try:
        yield
    finally:
        for layer in layers:
            layer.standardized = False


def pool(states: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Token states (rows, tokens, width) to one vector a row (rows, width); `mask` is 1 where a token is real."""
    if how == "cls":
        return states[:, 0]
    real = mask[..., None].to(states.dtype)
    if how == "mean":
        return (states * real).sum(1) / real.sum(1).clamp(min=1)
    return states.masked_fill(real == 0, torch.finfo(states.dtype).min).amax(1)


def without_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder without the family's own pooling, which would be kept, and never be trained."""
    bare: Any = encoder
    if getattr(bare, "pooler", None) is not None:
        bare.pooler = None
    return encoder


class LayerMix(nn.Module):
    """A learned average over layers: (rows, layers, width) to (rows, width)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return (self.weight.softmax(0)[:, None] * vectors).sum(1)


@dataclass
class EncoderHeadOutput(SequenceClassifierOutput):
    """`logits` of shape (rows, labels), and the `embedding` (rows, width) that the classifier saw."""

    embedding: torch.Tensor | None = None


class EncoderHeadForSequenceClassification(PreTrainedModel):
    """Encoder -> pooling -> hidden layers -> logits of shape (rows, labels)."""

    config_class = EncoderHeadConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: EncoderHeadConfig) -> None:
        super().__init__(config)
        self.encoder = without_pooler(AutoModel.from_config(config.encoder_config(), trust_remote_code=False))
        sizes = [self.encoder.config.hidden_size, *(config.hidden or []), config.num_labels]
        layers: list[nn.Module] = []
        for i, (width, after) in enumerate(pairwise(sizes)):
            layers += [nn.GELU()] if i else []
            layers += [nn.Dropout(config.head_dropout), nn.Linear(width, after)]
        self.classifier = nn.Sequential(*layers)
        if config.layers == "mix":  # the embeddings count as a layer; all weigh the same at first
            self.mix = LayerMix(self.encoder.config.num_hidden_layers + 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        **inputs: Any,
    ) -> EncoderHeadOutput:
        """Logits for token ids of shape (rows, tokens), or for what `pooled_states` made of them before. Losses are the task's
        business, so labels are not taken."""
        inputs.pop("return_dict", None)
        vectors = self.pooled_states(input_ids, attention_mask, **inputs) if pooled is None else pooled
        if self.config.layers == "mix":
            vectors = self.mix(vectors)
        embedding = F.normalize(vectors, dim=-1) if self.config.normalize else vectors
        return EncoderHeadOutput(logits=self.classifier(embedding), embedding=embedding)

    def pooled_states(
        self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """A vector a row (rows, width); with `layers: mix` one a layer, the embeddings first: (rows, layers + 1, width)."""
        mix = self.config.layers == "mix"
        inputs.pop("output_hidden_states", None)  # peft passes it on, whatever it is
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=mix, **inputs)
        states = found.last_hidden_state
        mask = attention_mask if attention_mask is not None else torch.ones(states.shape[:2], device=states.device)
        how = self.config.pooling
        return torch.stack([pool(layer, mask, how) for layer in found.hidden_states], 1) if mix else pool(states, mask, how)


def attach_head(
    encoder: PreTrainedModel, head: HeadConfig, dropout: float | None = None, **overrides: Any
) -> EncoderHeadForSequenceClassification:
    """A new head on a loaded encoder.

    Args:
        dropout: the head's dropout where its settings name none; None: 0.1.
        overrides: fields of the configuration (`id2label`, `problem_type` ...).
    """
    if not hasattr(encoder.config, "hidden_size"):
        raise UserError(
            f"task.head: a {encoder.config.model_type} encoder gives no vector for each token that a head could pool; allowed: "
            "family, with a strategy that works with the family's head, such as full"
        )
    rate = next((rate for rate in (head.dropout, dropout) if rate is not None), EncoderHeadConfig.head_dropout)
    fields = {key: value for key, value in encoder.config.to_dict().items() if key != "_name_or_path"}  # a local path
    config = EncoderHeadConfig(
        encoder=fields, pooling=head.pooling, hidden=list(head.hidden), head_dropout=rate, layers=head.layers,
        normalize=head.normalize,
        pad_token_id=getattr(encoder.config, "pad_token_id", None), **overrides,
    )  # fmt: skip
    model = EncoderHeadForSequenceClassification(config)
    model.encoder = without_pooler(encoder)
    model.new_parameters = frozenset(  # type: ignore[assignment]
        {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
        | {f"encoder.{name}" for name in getattr(encoder, "new_parameters", ()) if not name.startswith("pooler.")}
    )
    return model


AutoConfig.register(MODEL_TYPE, EncoderHeadConfig, exist_ok=True)
AutoModelForSequenceClassification.register(EncoderHeadConfig, EncoderHeadForSequenceClassification, exist_ok=True)
